//! What a failed statement means to the client. The text of a statement and the data of its tables stay
//! here.

use sqlx::error::{DatabaseError, ErrorKind};

use crate::{db, problem::Code};

/// Why a route's statement gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// The constraint that was violated.
    pub constraint: Option<String>,
    /// What the server called it, for the log.
    pub sqlstate: Option<String>,
}

impl Failure {
    fn plain(code: Code) -> Self {
        Self { code, constraint: None, sqlstate: None }
    }

    pub(super) fn internal() -> Self {
        Self::plain(Code::Internal)
    }

    pub(super) fn too_large() -> Self {
        Self::plain(Code::BodyTooLarge)
    }

    pub(super) fn result_too_large() -> Self {
        Self::plain(Code::ResultTooLarge)
    }

    /// A row that cannot be read.
    #[expect(clippy::needless_pass_by_value, reason = "it is the end of an error")]
    pub(super) fn of_row(_: sqlx::Error) -> Self {
        Self::internal()
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
            db::Error::Query(_) => Self::internal(),
        }
    }
}

fn of_database(error: &dyn DatabaseError) -> Failure {
    let sqlstate = error.code().map(std::borrow::Cow::into_owned);
    let code = match error.kind() {
        ErrorKind::UniqueViolation | ErrorKind::ForeignKeyViolation => Code::Conflict,
        ErrorKind::NotNullViolation | ErrorKind::CheckViolation => Code::Unprocessable,
        _ => by_state(sqlstate.as_deref().unwrap_or_default(), error.message()),
    };
    let constraint = error.constraint().map(str::to_owned).or_else(|| of_sqlite(error.message()));
    let constraint = constraint.filter(|_| matches!(code, Code::Conflict | Code::Unprocessable));
    Failure { code, constraint, sqlstate }
}

/// By SQLSTATE (PostgreSQL, appendix A) or SQLite's result code.
fn by_state(state: &str, message: &str) -> Code {
    match state {
        // A row that excludes this one.
        "23P01" => Code::Conflict,
        _ if state.len() == 5 && (state.starts_with("23") || state.starts_with("22")) => {
            Code::Unprocessable
        }
        // Others were in the way; nothing was done.
        "40001" | "40P01" | "55P03" => Code::Overloaded,
        // SQLITE_BUSY and its kin.
        "5" | "261" | "517" => Code::Overloaded,
        "57014" => Code::DatabaseTimeout,
        // SQLITE_CONSTRAINT of a trigger, SQLITE_MISMATCH.
        "1811" | "20" => Code::Unprocessable,
        // SQLite has one code for all errors of a statement, among them that of `json()`.
        "1" if message == "malformed JSON" => Code::Unprocessable,
        _ => Code::Internal,
    }
}

/// SQLite names the constraint in its message.
fn of_sqlite(message: &str) -> Option<String> {
    let (_, name) = message.split_once(" constraint failed: ")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_become_codes_of_the_contract() {
        for (state, code) in [
            ("23P01", Code::Conflict),
            ("23000", Code::Unprocessable),
            ("22P02", Code::Unprocessable),
            ("40001", Code::Overloaded),
            ("40P01", Code::Overloaded),
            ("5", Code::Overloaded),
            ("57014", Code::DatabaseTimeout),
            ("42P01", Code::Internal),
            ("25006", Code::Internal),
            ("8", Code::Internal),
            ("22", Code::Internal),
        ] {
            assert_eq!(by_state(state, ""), code, "{state}");
        }
        assert_eq!(of_sqlite("UNIQUE constraint failed: t.name"), Some("t.name".to_owned()));
    }
}
