//! The data cache: which keys there are, one value, and clearing.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, bad_request, problem};
use crate::{
    cache::{
        data::{DataKey, InvalidKey, Kind},
        remote::Error,
    },
    problem::Code,
};

/// Keys of one answer at most, and unless asked.
const MOST: usize = 1000;
const USUAL: usize = 100;
/// The longest pattern.
const LONGEST: usize = 512;

/// Which keys, from where, and how many.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    /// `*` stands for any characters, `?` for one.
    pattern: Option<String>,
    #[serde(default)]
    cursor: String,
    limit: Option<usize>,
}

impl Selection {
    /// How many keys are asked for.
    fn limit(&self) -> Result<usize, String> {
        let is_long = |text: &str| text.len() > LONGEST;
        if is_long(&self.cursor) || self.pattern.as_deref().is_some_and(is_long) {
            return Err("`pattern` or `cursor` is too long".to_owned());
        }
        let limit = self.limit.unwrap_or(USUAL);
        let is_legal = (1..=MOST).contains(&limit);
        is_legal.then_some(limit).ok_or_else(|| format!("`limit`: expected 1 to {MOST}"))
    }
}

/// `GET /admin/v1/data?pattern=&cursor=&limit=`: keys that match, about so many.
///
/// A page may be empty and yet have a next one: what is sought may be rare.
pub(super) async fn list(query: Query<Selection>, context: Data<Context>) -> HttpResponse {
    let limit = match query.limit() {
        Ok(limit) => limit,
        Err(reason) => return bad_request(&reason),
    };
    let pattern = query.pattern.as_deref().unwrap_or("*");
    match context.cache.data().keys(pattern, &query.cursor, limit).await {
        Ok(page) => HttpResponse::Ok().json(json!({ "keys": page.keys, "cursor": page.next })),
        Err(error) => failed(&error),
    }
}

/// `DELETE /admin/v1/data?pattern=&cursor=&limit=`: deletes what matches, on all instances, about so
/// many at a time.
pub(super) async fn clear(query: Query<Selection>, context: Data<Context>) -> HttpResponse {
    let limit = match query.limit() {
        Ok(limit) => limit,
        Err(reason) => return bad_request(&reason),
    };
    let Some(pattern) = &query.pattern else { return bad_request("`pattern` is missing") };
    match context.cache.data().clear(pattern, &query.cursor, limit).await {
        Ok(cleared) => {
            tracing::info!(pattern, deleted = cleared.deleted, "data cleared");
            HttpResponse::Ok().json(json!({
                "deleted": cleared.deleted,
                "cursor": cleared.next,
                "shared": cleared.shared,
            }))
        }
        Err(error) => failed(&error),
    }
}

/// `GET /admin/v1/data/{key}`: a value, and how many seconds it has left. A session's value is shown to
/// nobody.
pub(super) async fn show(key: Path<String>, context: Data<Context>) -> HttpResponse {
    let key: DataKey = match key.parse() {
        Ok(key) => key,
        Err(error) => return invalid(error),
    };
    let Some(shown) = context.cache.data().show(&key).await else {
        return problem(Code::NotFound, Some("there is no such value"));
    };
    let mut answer = json!({
        "key": key.as_str(),
        "kind": key.kind().as_str(),
        "life": shown.life.as_secs(),
        "size": shown.value.len(),
    });
    if key.kind() != Kind::Session {
        answer["value"] = serde_json::from_slice::<Value>(&shown.value).unwrap_or_default();
    }
    HttpResponse::Ok().json(answer)
}

/// `DELETE /admin/v1/data/{key}`: deletes a value on all instances, whether it is there or not.
pub(super) async fn delete(key: Path<String>, context: Data<Context>) -> HttpResponse {
    let key: DataKey = match key.parse() {
        Ok(key) => key,
        Err(error) => return invalid(error),
    };
    let changed = context.cache.data().delete(&key).await;
    tracing::info!(%key, "data deleted");
    HttpResponse::Ok().json(json!({ "shared": changed.shared, "missing": changed.missing }))
}

fn invalid(error: InvalidKey) -> HttpResponse {
    bad_request(&error.to_string())
}

fn failed(error: &Error) -> HttpResponse {
    match error {
        Error::Failed(reason) => bad_request(reason),
        Error::Away | Error::ReadOnly | Error::OutOfMemory => problem(Code::StoreUnavailable, None),
    }
}
