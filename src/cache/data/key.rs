//! Names of what the data cache holds.

use std::{fmt, str::FromStr, time::Duration};

/// What a value is, which decides how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A login. Its value is shown to nobody.
    Session,
    /// Who a caller is.
    Profile,
    /// Whether a caller may do something.
    Access,
    /// What is known about something else.
    Metadata,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Session, Self::Profile, Self::Access, Self::Metadata];

    /// As keys have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Profile => "profile",
            Self::Access => "access",
            Self::Metadata => "metadata",
        }
    }

    /// How long a value is kept.
    pub const fn lifetime(self) -> Duration {
        let minutes = match self {
            Self::Session => 9 * 60,
            Self::Profile => 60,
            Self::Access => 10,
            Self::Metadata => 5,
        };
        Duration::from_secs(minutes * 60)
    }
}

/// The name of a value: `tenant:{tenant}:{kind}:{id}`.
///
/// It is shown to operators and written into logs, so an id must never be a secret. What identifies a
/// session to its client is one: its digest is not, and makes an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DataKey {
    text: String,
    kind: Kind,
}

/// What is wrong with a part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("expected tenant:{{tenant}}:{{kind}}:{{id}}")]
    Form,
    #[error("the kind is none of session, profile, access, metadata")]
    Kind,
    #[error("a part is empty")]
    Empty,
    #[error("a part is too long")]
    Long,
    #[error("a part has a character that means something else in keys and patterns")]
    Character,
}

const MAX_TENANT: usize = 64;
const MAX_ID: usize = 256;

impl DataKey {
    /// # Errors
    ///
    /// When a part is empty or too long, or has white space, control characters or one of `{}*?[]\`;
    /// in the tenant, `:` as well.
    pub fn new(tenant: &str, kind: Kind, id: &str) -> Result<Self, InvalidKey> {
        check(tenant, MAX_TENANT)?;
        check(id, MAX_ID)?;
        if tenant.contains(':') {
            return Err(InvalidKey::Character);
        }
        Ok(Self { text: format!("tenant:{tenant}:{}:{id}", kind.as_str()), kind })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Braces would choose a Cluster's slot, the others are for patterns.
fn check(part: &str, longest: usize) -> Result<(), InvalidKey> {
    let is_special = |c: char| c.is_whitespace() || c.is_control() || "{}*?[]\\".contains(c);
    if part.is_empty() {
        Err(InvalidKey::Empty)
    } else if part.len() > longest {
        Err(InvalidKey::Long)
    } else if part.contains(is_special) {
        Err(InvalidKey::Character)
    } else {
        Ok(())
    }
}

impl FromStr for DataKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next().ok_or(InvalidKey::Form);
        if next()? != "tenant" {
            return Err(InvalidKey::Form);
        }
        let (tenant, kind, id) = (next()?, next()?, next()?);
        let kind = Kind::ALL.into_iter().find(|it| it.as_str() == kind).ok_or(InvalidKey::Kind)?;
        Self::new(tenant, kind, id)
    }
}

impl fmt::Display for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_what_and_which() {
        let key = DataKey::new("acme", Kind::Session, "a:b").expect("it is valid");
        assert_eq!(key.as_str(), "tenant:acme:session:a:b");
        assert_eq!(key.as_str().parse(), Ok(key));
    }

    #[test]
    fn no_part_can_be_read_as_another() {
        let new = |tenant: &str, id: &str| DataKey::new(tenant, Kind::Profile, id).map(|_| ());
        assert_eq!(new("a:profile", "1"), Err(InvalidKey::Character));
        assert_eq!(new("", "1"), Err(InvalidKey::Empty));
        assert_eq!(new("a", ""), Err(InvalidKey::Empty));
        assert_eq!(new(&"a".repeat(65), "1"), Err(InvalidKey::Long));
        assert_eq!(new("a", &"1".repeat(257)), Err(InvalidKey::Long));
        for special in ['{', '}', '*', '?', '[', '\\', ' ', '\n', '\0', '\u{a0}'] {
            assert_eq!(new("a", &format!("1{special}")), Err(InvalidKey::Character), "{special:?}");
            assert_eq!(new(&format!("a{special}"), "1"), Err(InvalidKey::Character), "{special:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (text, error) in [
            ("acme:session:1", InvalidKey::Form),
            ("tenant:acme:session", InvalidKey::Form),
            ("tenant:acme:secret:1", InvalidKey::Kind),
            ("tenant::session:1", InvalidKey::Empty),
        ] {
            assert_eq!(text.parse::<DataKey>(), Err(error), "{text}");
        }
    }

    #[test]
    fn lifetimes_are_those_promised() {
        let hours = |kind: Kind| kind.lifetime().as_secs_f64() / 3600.0;
        assert_eq!(hours(Kind::Session), 9.0);
        assert_eq!(hours(Kind::Profile), 1.0);
        assert_eq!(Kind::Access.lifetime(), Duration::from_secs(600));
        assert_eq!(Kind::Metadata.lifetime(), Duration::from_secs(300));
    }
}
