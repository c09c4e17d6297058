//! What a failed statement means to its client.
//!
//! A client learns what kind of failure it was, and the name of the constraint that it ran against. It
//! sees no SQL, no message of the database and nothing of its tables: messages quote values.

use sqlx::{error::DatabaseError, postgres::PgDatabaseError};

use crate::{db, problem::Code};

/// Why a route's statement gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// The constraint that stood against it, or the column, where the database names one.
    pub constraint: Option<String>,
    /// What the database calls the failure: SQLSTATE, or SQLite's result code.
    pub state: Option<String>,
    /// What the database says, where that can only be about the statement and its schema.
    pub message: Option<String>,
}

impl Failure {
    fn plain(code: Code) -> Self {
        Self { code, constraint: None, state: None, message: None }
    }

    /// A value that cannot be sent.
    pub(super) fn of_value() -> Self {
        Self::plain(Code::Unprocessable)
    }

    pub(super) fn result_too_large() -> Self {
        Self::plain(Code::ResultTooLarge)
    }

    /// A row that cannot be read.
    pub(super) fn of_row(error: &sqlx::Error) -> Self {
        Self { message: Some(error.to_string()), ..Self::plain(Code::Internal) }
    }

    /// Whether the write may stand although there is no response to tell so.
    pub fn may_have_written(&self) -> bool {
        matches!(self.code, Code::WriteOutcomeUnknown | Code::ResultTooLarge | Code::Internal)
    }

    /// Whether it is for operators: nobody else can do anything about it.
    pub fn is_internal(&self) -> bool {
        matches!(self.code, Code::StatementFailed | Code::ResultTooLarge | Code::Internal)
    }
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::NoPrimary | db::Error::NoNode => Self::plain(Code::DatabaseUnavailable),
            db::Error::Overloaded => Self::plain(Code::Overloaded),
            db::Error::OutcomeUnknown(_) => Self::plain(Code::WriteOutcomeUnknown),
            db::Error::TimedOut => Self::plain(Code::DatabaseTimeout),
            db::Error::Query(sqlx::Error::Database(error)) => of_database(&*error),
            db::Error::Query(
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed,
            ) => Self::plain(Code::DatabaseUnavailable),
            db::Error::Query(error) => Self::of_row(&error),
        }
    }
}

fn of_database(error: &dyn DatabaseError) -> Failure {
    let state = error.code().unwrap_or_default().into_owned();
    let (code, constraint) = match error.try_downcast_ref::<PgDatabaseError>() {
        Some(error) => (of_sqlstate(&state), postgres_constraint(error)),
        None => {
            let constraint = sqlite_constraint(error.message()).map(str::to_owned);
            (of_sqlite(state.parse().unwrap_or(0)), constraint)
        }
    };
    // Class 42: syntax, names and types. SQLite's 1 is the same, and has no finer code.
    let plain = state == "1" || state.len() == 5 && state.starts_with("42");
    Failure {
        code,
        constraint: constraint.filter(|_| matches!(code, Code::Conflict | Code::Unprocessable)),
        message: plain.then(|| error.message().to_owned()),
        state: Some(state),
    }
}

/// A column that must have a value is no constraint with a name, before version 18.
fn postgres_constraint(error: &PgDatabaseError) -> Option<String> {
    match error.constraint() {
        Some(name) => Some(name.to_owned()),
        None => Some(format!("{}.{}", error.table()?, error.column()?)),
    }
}

/// By SQLSTATE (PostgreSQL, appendix A).
fn of_sqlstate(state: &str) -> Code {
    match state {
        // Not null, check, and the check of a view: the value by itself is wrong.
        "23502" | "23514" | "44000" => Code::Unprocessable,
        // Unique, foreign key, exclusion, restrict: what is there already stands against it.
        _ if state.starts_with("23") => Code::Conflict,
        // Data exceptions: out of range, no such value of an enum, division by zero.
        _ if state.starts_with("22") => Code::Unprocessable,
        // Serialization failure, deadlock, lock not available.
        "40001" | "40P01" | "55P03" => Code::TransactionConflict,
        // Canceled: the server's own timeout.
        "57014" => Code::DatabaseTimeout,
        _ if state.starts_with("53") => Code::Overloaded,
        _ if state.starts_with("08") || state.starts_with("57P") => Code::DatabaseUnavailable,
        _ => Code::StatementFailed,
    }
}

/// By SQLite's extended result code, whose lowest byte is the primary one.
fn of_sqlite(code: u32) -> Code {
    const CHECK: u32 = 275;
    const NOT_NULL: u32 = 1299;
    /// A value of another type in a `STRICT` table.
    const DATA_TYPE: u32 = 3091;
    /// `RAISE` in a trigger.
    const TRIGGER: u32 = 1811;
    match (code, code & 0xFF) {
        (CHECK | NOT_NULL | DATA_TYPE, _) => Code::Unprocessable,
        (TRIGGER, _) => Code::StatementFailed,
        (_, 19) => Code::Conflict,
        // Too big, and mismatch.
        (_, 18 | 20) => Code::Unprocessable,
        // Busy, and locked.
        (_, 5 | 6) => Code::TransactionConflict,
        // Interrupted.
        (_, 9) => Code::DatabaseTimeout,
        // I/O error, corrupt, full, cannot open, not a database.
        (_, 10 | 11 | 13 | 14 | 26) => Code::DatabaseUnavailable,
        _ => Code::StatementFailed,
    }
}

/// The name in `UNIQUE constraint failed: products.sku`: of the constraint, or of the columns.
///
/// A check without a name is called by its text, which nobody needs to see.
fn sqlite_constraint(message: &str) -> Option<&str> {
    let (_, name) = message.split_once(" constraint failed: ")?;
    let name = name.strip_prefix("index '").and_then(|it| it.strip_suffix('\'')).unwrap_or(name);
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | ',' | ' ' | '-');
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_against_a_write_is_a_conflict_and_a_wrong_value_is_not() {
        for state in ["23505", "23503", "23P01", "23001", "23000"] {
            assert_eq!(of_sqlstate(state), Code::Conflict, "{state}");
        }
        for state in ["23502", "23514", "22P02", "22003", "22012", "22021", "44000"] {
            assert_eq!(of_sqlstate(state), Code::Unprocessable, "{state}");
        }
        for code in [2067, 1555, 787, 2579, 19] {
            assert_eq!(of_sqlite(code), Code::Conflict, "{code}");
        }
        for code in [275, 1299, 3091, 18, 20] {
            assert_eq!(of_sqlite(code), Code::Unprocessable, "{code}");
        }
    }

    #[test]
    fn what_may_pass_says_so_and_what_is_a_mistake_of_the_operator_does_not() {
        for state in ["40001", "40P01", "55P03"] {
            assert_eq!(of_sqlstate(state), Code::TransactionConflict, "{state}");
        }
        for state in ["42601", "42P01", "42501", "42883", "25006", "P0001", "XX000", ""] {
            assert_eq!(of_sqlstate(state), Code::StatementFailed, "{state}");
        }
        assert_eq!(of_sqlstate("57014"), Code::DatabaseTimeout);
        assert_eq!(of_sqlstate("53300"), Code::Overloaded);
        assert_eq!(of_sqlstate("57P01"), Code::DatabaseUnavailable);
        for code in [5, 261, 517, 6, 262] {
            assert_eq!(of_sqlite(code), Code::TransactionConflict, "{code}");
        }
        for code in [1, 8, 264, 1811, 0] {
            assert_eq!(of_sqlite(code), Code::StatementFailed, "{code}");
        }
        assert_eq!(of_sqlite(14), Code::DatabaseUnavailable);
    }

    #[test]
    fn a_constraint_is_shown_by_name_and_never_by_its_text() {
        let name = sqlite_constraint;
        assert_eq!(name("UNIQUE constraint failed: products.sku"), Some("products.sku"));
        assert_eq!(name("UNIQUE constraint failed: p.a, p.b"), Some("p.a, p.b"));
        assert_eq!(name("UNIQUE constraint failed: index 'lower_name'"), Some("lower_name"));
        assert_eq!(name("CHECK constraint failed: price_is_positive"), Some("price_is_positive"));
        assert_eq!(name("CHECK constraint failed: length(name) > 0"), None);
        assert_eq!(name("FOREIGN KEY constraint failed"), None);
        assert_eq!(name("no such table: x"), None);
    }
}
