//! Runs a route's statement and makes the body of its response.

use bytes::Bytes;
use sqlx::Either;

use super::{
    cursor::{self, Page},
    error::Failure,
    json::List,
    params::{self, Input, Mistakes},
    postgres, sqlite,
    statement::Compiled,
};
use crate::{
    db::{Db, Error, Position, Run, Session, Statement},
    routes::{
        Access, SqlRule,
        model::{self, Param},
        sql::Value,
    },
};

/// One request for a route's statement, read and checked.
#[derive(Debug, Clone)]
pub struct Call {
    values: Vec<Value>,
    page: Option<Page>,
}

/// What it gives.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub rows: Rows,
    /// The query of the next page, if there is one.
    pub next: Option<String>,
    /// Where a write can be read.
    pub position: Option<Position>,
}

/// The body.
#[derive(Debug, Clone)]
pub enum Rows {
    Json(Bytes),
    /// It gives none.
    Nothing,
    /// `one` was asked for and there is none.
    NotFound,
}

/// How a read is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Freshness {
    /// What it has to see.
    pub after: Option<Position>,
    /// Everything that was committed before.
    pub strong: bool,
}

/// What a statement is given.
pub(super) struct Given<'a> {
    rule: &'a SqlRule,
    call: &'a Call,
}

impl<'a> Given<'a> {
    pub(super) fn values(&self) -> impl Iterator<Item = (&'a Param, &'a Value)> {
        self.rule.params.iter().zip(&self.call.values)
    }

    pub(super) fn page(&self) -> Option<(&'a model::Page, &'a Page)> {
        self.rule.page.as_ref().zip(self.call.page.as_ref())
    }
}

impl Call {
    /// Whether the request's body is needed.
    pub fn needs_body(rule: &SqlRule) -> bool {
        params::need_body(&rule.params)
    }

    /// Reads what the statement takes.
    ///
    /// # Errors
    ///
    /// All mistakes of the request at once.
    pub fn read(rule: &SqlRule, input: &Input<'_>) -> Result<Self, Mistakes> {
        let page = rule.page.as_ref().map(|page| cursor::read(page, input.query)).transpose();
        match (params::read(&rule.params, input), page) {
            (Ok(values), Ok(page)) => Ok(Self { values, page }),
            (Err(other @ (Mistakes::NoCaller | Mistakes::MediaType)), _) => Err(other),
            (values, page) => {
                let mut all = Vec::new();
                let mut readable = true;
                if let Err(Mistakes::Values { mistakes, readable: rules }) = values {
                    all.extend(mistakes);
                    readable &= rules;
                }
                if let Err(mistakes) = page {
                    all.extend(mistakes);
                    readable = false;
                }
                Err(Mistakes::Values { mistakes: all, readable })
            }
        }
    }

    /// Runs the statement.
    ///
    /// # Errors
    ///
    /// [`Failure`], which holds nothing internal.
    pub async fn run(
        &self,
        db: &Db,
        rule: &SqlRule,
        compiled: &Compiled,
        freshness: Freshness,
        query: Option<&str>,
    ) -> Result<Outcome, Failure> {
        let given = Given { rule, call: self };
        let sql = match (&compiled.after, &self.page) {
            (Some(after), Some(Page { after: Some(_), .. })) => after.clone(),
            _ => compiled.first.clone(),
        };
        let mut list = List::default();
        let mut affected = 0;
        // The keys of the last row that belongs to the page.
        let mut last = None;
        let kept = self.page.as_ref().map_or(usize::MAX, |page| page.limit as usize);
        let mut more = false;
        macro_rules! run {
            ($router:expr, $bind:path, $row:expr) => {{
                let session = $router.session(freshness.after);
                let statement = Statement::new(sql, $bind(&given)?);
                for step in steps(&session, rule, freshness, statement).await? {
                    match step {
                        Either::Left(result) => affected += result.rows_affected(),
                        Either::Right(_) if list.count == kept => more = true,
                        Either::Right(row) => last = $row(&row, &mut list)?,
                    }
                }
                session.position()
            }};
        }
        let position = match db {
            Db::Postgres(router) => run!(router, postgres::bind, postgres::row),
            Db::Sqlite(router) => {
                let keys = rule.page.as_ref().map_or(&[][..], |page| &page.keys);
                run!(router, sqlite::bind, |row, list| sqlite::row(row, list, keys))
            }
        };
        let rows = self.rows(rule, compiled, list, affected)?;
        let next = last.filter(|_| more).map(|keys| cursor::next(query, &keys));
        Ok(Outcome { rows, next, position })
    }

    fn rows(
        &self,
        rule: &SqlRule,
        compiled: &Compiled,
        list: List,
        affected: u64,
    ) -> Result<Rows, Failure> {
        // What was written cannot be taken back for the length of its answer.
        let limited = rule.access == Access::Read && self.page.is_none();
        if limited && list.count > rule.max_rows as usize {
            return Err(Failure::result_too_large());
        }
        if !compiled.rows {
            let missed = rule.one && affected == 0;
            return Ok(if missed { Rows::NotFound } else { Rows::Nothing });
        }
        if !rule.one {
            return Ok(Rows::Json(list.finish()));
        }
        match list.count {
            0 => Ok(Rows::NotFound),
            1 => Ok(list.only().map_or(Rows::NotFound, Rows::Json)),
            _ => Err(Failure::result_too_large()),
        }
    }
}

async fn steps<B: crate::db::Backend>(
    session: &Session<B>,
    rule: &SqlRule,
    freshness: Freshness,
    statement: Statement<B>,
) -> Result<crate::db::Rows<B>, Error> {
    match rule.access {
        Access::Write => session.write().run(statement).await,
        Access::Read if freshness.strong => session.read().strong().run(statement).await,
        Access::Read => session.read().run(statement).await,
    }
}
