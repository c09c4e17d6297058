//! Where the routes come from.

use std::path::PathBuf;

use url::Url;

use super::{values, vars::Vars};

/// Where the routes come from; neither is valid and routes nothing.
///
/// - `ROUTES_FILE` (none): the routes file, YAML.
/// - `UPSTREAM_URL` (none): instead of a file, one upstream for every path.
#[derive(Debug, Clone)]
pub struct RoutesConfig {
    pub file: Option<PathBuf>,
    pub upstream_url: Option<Url>,
}

impl RoutesConfig {
    pub(super) fn read(vars: &mut Vars<'_>) -> Self {
        let file = vars.optional("ROUTES_FILE", |text| Ok(PathBuf::from(text)));
        // Somebody may have put a password into it, which is refused but not to be repeated.
        let upstream_url = vars.secret("UPSTREAM_URL", |text| {
            values::base_url(text).map_err(|expected| match text.contains('@') {
                true => expected,
                false => format!("{expected}, not {text:?}"),
            })
        });
        if file.is_some() && upstream_url.is_some() {
            vars.mistake(
                "UPSTREAM_URL and ROUTES_FILE are both set: expected at most one of them"
                    .to_owned(),
            );
        }
        Self { file, upstream_url }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn a_file_and_an_upstream_exclude_each_other() {
        let errors = config(&[("ROUTES_FILE", "r.yaml"), ("UPSTREAM_URL", "http://h")])
            .expect_err("both are set");
        assert!(errors.contains("UPSTREAM_URL and ROUTES_FILE"), "{errors}");
    }

    #[test]
    fn an_upstream_url_keeps_its_path() {
        let config = config(&[("UPSTREAM_URL", "https://example.com:8443/base")]).expect("valid");
        assert_eq!(config.routes.upstream_url.expect("a URL").path(), "/base");
    }

    #[test]
    fn a_password_in_an_upstream_url_is_refused_and_not_repeated() {
        let errors = config(&[("UPSTREAM_URL", "http://me:hunter2@h/")]).expect_err("a password");
        assert!(errors.starts_with("UPSTREAM_URL") && !errors.contains("hunter2"), "{errors}");
        let errors = config(&[("UPSTREAM_URL", "ftp://h")]).expect_err("a scheme");
        assert!(errors.contains("ftp://h"), "{errors}");
    }
}
