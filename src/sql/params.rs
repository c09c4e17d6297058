//! Reads the values of a statement's parameters from a request, and says at once all that is wrong.

use std::{borrow::Cow, collections::BTreeMap};

use actix_http::header::{CONTENT_TYPE, HeaderMap};
use serde::Serialize;
use serde_json::value::RawValue;
use url::form_urlencoded;

use crate::routes::{
    model::{Param, ParamSource, Presence},
    sql::{Unfit, Value, array},
};

/// The decoded value of a placeholder of the path.
pub type PathValue<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub id: &'a str,
    pub tenant: &'a str,
}

/// The parts of a request that parameters come from.
pub struct Input<'a> {
    pub path: PathValue<'a>,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub caller: Option<Caller<'a>>,
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// `path`, `query`, `header` or `body`.
    #[serde(rename = "in")]
    pub location: &'static str,
    pub name: String,
    /// What was expected.
    pub message: String,
}

/// Why the values of a request cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistakes {
    /// They have to come from a caller, and nobody is known to be one.
    NoCaller,
    /// The body is in a form that has no fields.
    MediaType,
    /// At least one; `readable` if each could be read as its type and only broke a rule.
    Values { mistakes: Vec<Mistake>, readable: bool },
}

/// A value as a request has it.
enum Raw<'a> {
    Text(Cow<'a, str>),
    Json(&'a RawValue),
}

/// The fields of a body.
enum Body<'a> {
    None,
    Json(BTreeMap<Cow<'a, str>, &'a RawValue>),
    Form(Vec<(Cow<'a, str>, Cow<'a, str>)>),
}

/// Whether any of the parameters comes from the body.
pub(super) fn need_body(params: &[Param]) -> bool {
    params.iter().any(|param| matches!(param.source, ParamSource::Body(_)))
}

/// One value for each parameter, in their order.
///
/// # Errors
///
/// Everything that is wrong, at once.
pub fn read(params: &[Param], input: &Input<'_>) -> Result<Vec<Value>, Mistakes> {
    let mut mistakes = Vec::new();
    let mut readable = true;
    let body = if need_body(params) { body(input) } else { Ok(Body::None) };
    let body = match body {
        Ok(body) => body,
        Err(BadBody::MediaType) => return Err(Mistakes::MediaType),
        Err(BadBody::Syntax) => {
            readable = false;
            let message = "a JSON object".to_owned();
            mistakes.push(Mistake { location: "body", name: String::new(), message });
            // Its fields cannot be missing from what could not be read.
            Body::None
        }
    };
    let broken = !readable;
    let query: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        form_urlencoded::parse(input.query.unwrap_or_default().as_bytes()).collect();
    let mut values = Vec::with_capacity(params.len());
    for param in params {
        let (location, name, found) = match &param.source {
            ParamSource::Path(field) => {
                ("path", &**field, (input.path)(field).map(|it| vec![Raw::Text(it.into())]))
            }
            ParamSource::Query(field) => ("query", &**field, named(&query, field)),
            ParamSource::Header(field) => {
                let texts = input
                    .headers
                    .get_all(field)
                    .map(|value| Raw::Text(String::from_utf8_lossy(value.as_bytes())));
                (
                    "header",
                    field.as_str(),
                    Some(texts.collect()).filter(|it: &Vec<_>| !it.is_empty()),
                )
            }
            ParamSource::Body(field) => ("body", &**field, body.field(field)),
            ParamSource::CallerId | ParamSource::CallerTenant => {
                let Some(caller) = input.caller else { return Err(Mistakes::NoCaller) };
                let id = matches!(param.source, ParamSource::CallerId);
                let text = if id { caller.id } else { caller.tenant };
                ("caller", if id { "id" } else { "tenant" }, Some(vec![Raw::Text(text.into())]))
            }
        };
        if broken && location == "body" {
            continue;
        }
        let read = match (found, &param.presence) {
            (Some(raw), _) => one(param, &raw),
            (None, Presence::Required) => Err(Unfit::Type(expected(param))),
            (None, Presence::Optional) => Ok(Value::Null),
            // It was checked when the file was read.
            (None, Presence::Default(text)) => one(param, &[Raw::Text(Cow::Borrowed(text))]),
        };
        match read {
            Ok(value) => values.push(value),
            Err(unfit) => {
                readable &= matches!(unfit, Unfit::Rule(_));
                let message = format!("expected {}", unfit.expected());
                mistakes.push(Mistake { location, name: name.to_owned(), message });
            }
        }
    }
    if mistakes.is_empty() { Ok(values) } else { Err(Mistakes::Values { mistakes, readable }) }
}

fn expected(param: &Param) -> String {
    let one = param.kind.expected();
    if param.array { format!("a list, each {one}") } else { one }
}

fn named<'a>(pairs: &[(Cow<'a, str>, Cow<'a, str>)], field: &str) -> Option<Vec<Raw<'a>>> {
    let found = pairs.iter().filter(|(name, _)| name == field);
    let texts: Vec<_> = found.map(|(_, value)| Raw::Text(value.clone())).collect();
    (!texts.is_empty()).then_some(texts)
}

/// A value from all that was given for it: one text or piece of JSON, or several texts for an array.
fn one(param: &Param, given: &[Raw<'_>]) -> Result<Value, Unfit> {
    let kind = &param.kind;
    match given {
        [Raw::Json(json)] if param.array => {
            let items: Vec<&RawValue> =
                serde_json::from_str(json.get()).map_err(|_| Unfit::Type(expected(param)))?;
            array(items.into_iter(), |item| kind.read_json(item.get()))
        }
        [Raw::Json(json)] => kind.read_json(json.get()),
        texts if param.array => {
            let items = texts.iter().flat_map(|raw| match raw {
                Raw::Text(text) if text.is_empty() => Vec::new(),
                Raw::Text(text) => text.split(',').collect(),
                Raw::Json(json) => vec![json.get()],
            });
            array(items, |text| kind.read(text))
        }
        [Raw::Text(text)] => kind.read(text),
        _ => Err(Unfit::Type(format!("{}, once", expected(param)))),
    }
}

enum BadBody {
    MediaType,
    Syntax,
}

fn body<'a>(input: &Input<'a>) -> Result<Body<'a>, BadBody> {
    if input.body.is_empty() {
        return Ok(Body::None);
    }
    let media_type = input.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is = |name: &str| media_type.eq_ignore_ascii_case(name);
    if is("application/json") || media_type.to_ascii_lowercase().ends_with("+json") {
        serde_json::from_slice(input.body).map(Body::Json).map_err(|_| BadBody::Syntax)
    } else if is("application/x-www-form-urlencoded") {
        Ok(Body::Form(form_urlencoded::parse(input.body).collect()))
    } else {
        Err(BadBody::MediaType)
    }
}

impl<'a> Body<'a> {
    /// `null` is no value.
    fn field(&self, name: &str) -> Option<Vec<Raw<'a>>> {
        match self {
            Self::None => None,
            Self::Json(fields) => {
                let json = fields.get(name).filter(|json| json.get() != "null")?;
                Some(vec![Raw::Json(json)])
            }
            Self::Form(pairs) => named(pairs, name),
        }
    }
}

#[cfg(test)]
mod tests;
