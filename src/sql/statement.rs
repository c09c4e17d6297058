//! The statements that a route runs: what its text becomes for each database.

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::sqlite::Declared;
use crate::{
    db::Db,
    routes::{
        Access, ParamType, SqlRule,
        model::{PageKey, Param},
        sql::Verb,
    },
};

/// What the rows are called where they are turned into JSON. Long enough to be nobody else's.
const ROWS: &str = "portway_rows";

/// Which SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    pub fn of(db: &Db) -> Self {
        match db {
            Db::Postgres(_) => Self::Postgres,
            Db::Sqlite(_) => Self::Sqlite,
        }
    }
}

/// What a route runs, made when the routes file is read.
#[derive(Debug)]
pub struct Compiled {
    /// Takes the parameters in their order, and then the limit of a page, if there are pages.
    pub(super) first: SqlStr,
    /// For a page after the first: takes the values of its keys after these.
    pub(super) after: Option<SqlStr>,
    /// Whether it gives rows.
    pub(super) rows: bool,
    /// What SQLite's schema says of the columns of its result.
    pub(super) declared: Declared,
}

impl Compiled {
    pub fn new(rule: &SqlRule, dialect: Dialect) -> Self {
        let text = |text: String| AssertSqlSafe(text).into_sql_str();
        let returns = rule.text.verb() == Verb::Select || rule.text.returning();
        let limit = match rule.page {
            // The page's own limit, and one more to see whether another page follows.
            Some(_) => marker(rule.params.len(), dialect),
            // One more than there may be, to see whether there are.
            None if rule.one => "2".to_owned(),
            None => (rule.max_rows + 1).to_string(),
        };
        let build = |after: bool| match dialect {
            Dialect::Postgres => postgres(rule, &limit, after),
            Dialect::Sqlite => sqlite(rule, &limit, after),
        };
        Self {
            first: text(build(false)),
            after: rule.page.as_ref().map(|_| text(build(true))),
            rows: returns,
            declared: Declared::default(),
        }
    }
}

impl Compiled {
    /// The statement that takes all values.
    pub(super) fn longest(&self) -> &SqlStr {
        self.after.as_ref().unwrap_or(&self.first)
    }
}

/// PostgreSQL makes the JSON: one text for each row, in the order of the statement.
fn postgres(rule: &SqlRule, limit: &str, after: bool) -> String {
    let bind = |index: usize| bound(&rule.params[index], index);
    let json = format!("SELECT row_to_json({ROWS})::text");
    let text = &rule.text;
    match (rule.access, text.verb()) {
        (Access::Read, _) | (Access::Write, Verb::Select) => {
            let (keys, order) = paged(rule, after, Dialect::Postgres);
            let cursor = match &rule.page {
                Some(page) => {
                    let columns: Vec<String> =
                        page.keys.iter().map(|key| format!("{ROWS}.{}", quoted(key))).collect();
                    format!(", json_build_array({})::text", columns.join(", "))
                }
                None => String::new(),
            };
            format!(
                "{json}{cursor} FROM (\n{}\n) {ROWS}{keys}{order} LIMIT {limit}",
                text.whole(bind)
            )
        }
        // What changes rows has to stand in a WITH list at the top, beside that of its own.
        (Access::Write, _) if text.returning() => {
            let own = text.with_list(bind);
            let list =
                if own.is_empty() { "WITH".to_owned() } else { format!("{},", own.trim_end()) };
            format!("{list} {ROWS} AS (\n{}\n) {json} FROM {ROWS}", text.main(bind))
        }
        (Access::Write, _) => text.whole(bind),
    }
}

/// SQLite gives its rows as they are.
fn sqlite(rule: &SqlRule, limit: &str, after: bool) -> String {
    let bind = |index: usize| marker(index, Dialect::Sqlite);
    match rule.access {
        Access::Write => rule.text.whole(bind),
        Access::Read => {
            let (keys, order) = paged(rule, after, Dialect::Sqlite);
            let text = rule.text.whole(bind);
            format!("SELECT * FROM (\n{text}\n) AS {ROWS}{keys}{order} LIMIT {limit}")
        }
    }
}

/// The condition that begins a page after its cursor, and the order.
fn paged(rule: &SqlRule, after: bool, dialect: Dialect) -> (String, String) {
    let Some(page) = &rule.page else { return (String::new(), String::new()) };
    let column = |key: &PageKey| format!("{ROWS}.{}", quoted(key));
    let order: Vec<String> = page
        .keys
        .iter()
        .map(|key| format!("{}{}", column(key), if key.descending { " DESC" } else { "" }))
        .collect();
    let order = format!(" ORDER BY {}", order.join(", "));
    if !after {
        return (String::new(), order);
    }
    let first = rule.params.len() + 1;
    let value = |index: usize| match dialect {
        Dialect::Postgres => cast(&page.keys[index].kind, false, first + index),
        Dialect::Sqlite => marker(first + index, dialect),
    };
    // Beyond in the first key; or equal in it and beyond in the second; and so on. Databases compare rows
    // at once only where all keys go in one direction.
    let beyond: Vec<String> = (0..page.keys.len())
        .map(|last| {
            let equal =
                (0..last).map(|index| format!("{} = {}", column(&page.keys[index]), value(index)));
            let sign = if page.keys[last].descending { "<" } else { ">" };
            let beyond = format!("{} {sign} {}", column(&page.keys[last]), value(last));
            format!("({})", equal.chain([beyond]).collect::<Vec<_>>().join(" AND "))
        })
        .collect();
    (format!(" WHERE {}", beyond.join(" OR ")), order)
}

fn quoted(key: &PageKey) -> String {
    format!("\"{}\"", key.column)
}

fn marker(index: usize, dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => format!("${}", index + 1),
        Dialect::Sqlite => format!("?{}", index + 1),
    }
}

fn bound(param: &Param, index: usize) -> String {
    cast(&param.kind, param.array, index)
}

/// Numbers and JSON are bound as text, which loses nothing, and so need a cast.
fn cast(kind: &ParamType, array: bool, index: usize) -> String {
    let marker = marker(index, Dialect::Postgres);
    let brackets = if array { "[]" } else { "" };
    match kind {
        ParamType::Number { .. } => format!("CAST({marker} AS numeric{brackets})"),
        ParamType::Json => format!("CAST({marker} AS jsonb{brackets})"),
        _ => marker,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routes::{Action, RouteTable};

    fn compiled(sql: &str, params: &str, dialect: Dialect) -> Compiled {
        let text = format!(
            "routes: [{{ name: r, path: /r, methods: [POST], params: {{ {params} }}, sql: {{ {sql} }} }}]"
        );
        let table = RouteTable::parse("r", &text, &BTreeMap::<String, String>::new());
        let table = table.unwrap_or_else(|errors| panic!("{errors}"));
        let Action::Sql(rule) = &table.routes[0].action else { panic!("not SQL") };
        Compiled::new(rule, dialect)
    }

    fn first(sql: &str, params: &str, dialect: Dialect) -> String {
        compiled(sql, params, dialect).first.as_str().replace('\n', " ")
    }

    #[test]
    fn postgresql_makes_the_json_of_reads_and_writes() {
        assert_eq!(
            first(
                "read: 'SELECT :a, :n', max_rows: 10",
                "n: query number, a: query text",
                Dialect::Postgres
            ),
            "SELECT row_to_json(portway_rows)::text FROM ( SELECT $2, CAST($1 AS numeric) ) portway_rows LIMIT 11"
        );
        assert_eq!(
            first(
                "write: 'UPDATE t SET a = :a RETURNING a'",
                "a: 'body json[]'",
                Dialect::Postgres
            ),
            "WITH portway_rows AS ( UPDATE t SET a = CAST($1 AS jsonb[]) RETURNING a ) \
             SELECT row_to_json(portway_rows)::text FROM portway_rows"
        );
        assert_eq!(
            first(
                "write: 'WITH x AS (SELECT 1) INSERT INTO t SELECT :a RETURNING a'",
                "a: body text",
                Dialect::Postgres
            ),
            "WITH x AS (SELECT 1), portway_rows AS ( INSERT INTO t SELECT $1 RETURNING a ) \
             SELECT row_to_json(portway_rows)::text FROM portway_rows"
        );
        assert_eq!(first("write: DELETE FROM t", "", Dialect::Postgres), "DELETE FROM t");
        assert!(first("write: SELECT f()", "", Dialect::Postgres).contains("FROM ( SELECT f() )"));
    }

    #[test]
    fn sqlite_gets_the_statement_itself() {
        assert_eq!(
            first("read: 'SELECT :a'", "a: query text", Dialect::Sqlite),
            "SELECT * FROM ( SELECT ?1 ) AS portway_rows LIMIT 1001"
        );
        assert_eq!(
            first(
                "write: 'DELETE FROM t WHERE a = :a RETURNING a'",
                "a: body text",
                Dialect::Sqlite
            ),
            "DELETE FROM t WHERE a = ?1 RETURNING a"
        );
    }

    #[test]
    fn a_page_goes_on_after_its_keys_whatever_their_directions() {
        let keys =
            "read: 'SELECT * FROM t WHERE x = :x', page: { keys: [at timestamp desc, id integer] }";
        let compiled = compiled(keys, "x: query integer", Dialect::Postgres);
        let after = compiled.after.expect("pages");
        assert!(after.as_str().replace('\n', " ").ends_with(
            "WHERE (portway_rows.\"at\" < $3) OR (portway_rows.\"at\" = $3 AND portway_rows.\"id\" > $4) \
             ORDER BY portway_rows.\"at\" DESC, portway_rows.\"id\" LIMIT $2"
        ), "{}", after.as_str());
        assert!(
            compiled
                .first
                .as_str()
                .contains("json_build_array(portway_rows.\"at\", portway_rows.\"id\")")
        );
    }
}
