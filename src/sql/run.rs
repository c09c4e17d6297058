//! Runs a route's statement and makes the body of its response.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::Either;

use super::{
    cursor::{self, Page},
    engine::Engine,
    error::Failure,
    json::List,
    params::{self, Input, Mistakes},
    statement::Compiled,
};
use crate::{
    db::{self, Db, Position, Router, Run as _, Session, Statement},
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
    /// The cursor of the next page, if there is one.
    pub next: Option<String>,
    /// Where a write can be read.
    pub position: Option<Position>,
    /// Not all that was committed may be in it, although that was asked for: there is no primary.
    pub behind: bool,
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
    /// Everything that was committed before, if there is a primary to tell.
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
    /// [`Failure`], of which a client may see the code and the constraint.
    pub async fn run(
        &self,
        db: &Db,
        rule: &SqlRule,
        compiled: &Compiled,
        freshness: Freshness,
    ) -> Result<Outcome, Failure> {
        let given = Given { rule, call: self };
        let mut strong = freshness.strong && db.has_primary();
        loop {
            let outcome = match db {
                Db::Postgres(router) => {
                    given.run(router, compiled, freshness.after, strong).await?
                }
                Db::Sqlite(router) => given.run(router, compiled, freshness.after, strong).await?,
            };
            let weaker = freshness.strong && !strong;
            if weaker && db.has_primary() {
                // It was found meanwhile, as after a start.
                strong = true;
                continue;
            }
            return Ok(Outcome { behind: outcome.behind || weaker, ..outcome });
        }
    }
}

impl Given<'_> {
    async fn run<B: Engine>(
        &self,
        router: &Arc<Router<B>>,
        compiled: &Compiled,
        after: Option<Position>,
        strong: bool,
    ) -> Result<Outcome, Failure> {
        let page = self.call.page.as_ref();
        let sql = match &compiled.after {
            Some(later) if page.is_some_and(|page| page.after.is_some()) => later,
            _ => &compiled.first,
        };
        let session = router.session(after);
        let statement = Statement::new(sql.clone(), B::bind(self)?);
        let (steps, behind) = self.steps(&session, strong, statement).await?;

        let (mut rows, mut affected) = (Vec::with_capacity(steps.len()), 0);
        for step in steps {
            match step {
                Either::Left(result) => affected += B::affected(&result),
                Either::Right(row) => rows.push(row),
            }
        }
        let mut next = None;
        let mut list = List::default();
        if let Some(first) = rows.first() {
            let columns = B::columns(&session, compiled, first).await?;
            if let Some((rule, page)) = self.page()
                && rows.len() > page.limit as usize
            {
                rows.truncate(page.limit as usize);
                if let Some(last) = rows.last() {
                    next = Some(cursor::encode(&B::keys(last, &columns, &rule.keys)?));
                }
            }
            for row in &rows {
                list.push(|out| B::write(row, &columns, out))?;
            }
        }
        let rows = self.rows(compiled, list, affected)?;
        Ok(Outcome { rows, next, position: session.position(), behind })
    }

    /// Runs it on the node that it is for; whether that may be behind what was committed, although
    /// `strong` asked for all of it.
    async fn steps<B: Engine>(
        &self,
        session: &Session<B>,
        strong: bool,
        statement: Statement<B>,
    ) -> Result<(db::Rows<B>, bool), Failure> {
        if self.rule.access == Access::Write {
            return match session.write().run(statement).await {
                Ok(steps) => Ok((steps, false)),
                // It refuses writes and no other node takes them: there is no primary.
                Err(db::Error::Query(sqlx::Error::Database(error)))
                    if error.code().is_some_and(|code| code == "25006") =>
                {
                    Err(db::Error::NoPrimary.into())
                }
                Err(error) => Err(error.into()),
            };
        }
        if strong {
            match session.read().strong().run(statement.clone()).await {
                Err(db::Error::NoPrimary) => {}
                answered => return Ok((answered?, false)),
            }
        }
        Ok((session.read().run(statement).await?, strong))
    }

    fn rows(&self, compiled: &Compiled, list: List, affected: u64) -> Result<Rows, Failure> {
        let rule = self.rule;
        // What was written cannot be taken back for the length of its answer.
        let limited = rule.access == Access::Read && rule.page.is_none();
        if limited && list.count() > rule.max_rows as usize {
            return Err(Failure::result_too_large());
        }
        if !compiled.rows {
            let missed = rule.one && affected == 0;
            return Ok(if missed { Rows::NotFound } else { Rows::Nothing });
        }
        if !rule.one {
            return Ok(Rows::Json(list.finish()));
        }
        match list.count() {
            0 => Ok(Rows::NotFound),
            1 => Ok(list.only().map_or(Rows::NotFound, Rows::Json)),
            _ => Err(Failure::result_too_large()),
        }
    }
}
