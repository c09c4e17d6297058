//! What a purge can name.

use serde::{Deserialize, Serialize};

/// What a purge names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// One URL: every stored response for it, whatever it varies on and whoever it belongs to.
    Url {
        host: String,
        path: String,
        query: Option<String>,
    },
    Route(String),
    Tag(String),
    Tenant(String),
    /// One value of the data cache, by its key.
    Data(String),
    /// Every URL whose path and query start so; with a host, only there.
    Prefix {
        host: Option<String>,
        path: String,
    },
    /// Like a prefix, but a glob over the whole path and query: `*` any run of characters, `?` one.
    Pattern {
        host: Option<String>,
        glob: String,
    },
    All,
}

impl Selector {
    /// Whether this is a prefix or a pattern that takes in `target`, a path with its query.
    pub(super) fn takes_in(&self, at_host: &str, target: &str) -> bool {
        let on_host = |wanted: &Option<String>| wanted.as_deref().is_none_or(|it| it == at_host);
        match self {
            Self::Prefix { host, path } => on_host(host) && target.starts_with(path.as_str()),
            Self::Pattern { host, glob } => {
                on_host(host) && glob_matches(glob.as_bytes(), target.as_bytes())
            }
            Self::Url { .. }
            | Self::Route(_)
            | Self::Tag(_)
            | Self::Tenant(_)
            | Self::Data(_)
            | Self::All => false,
        }
    }
}

/// `*` stands for any run of bytes, `?` for one. Linear in practice and never exponential: only
/// the last `*` is ever tried again.
pub fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    g = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}
