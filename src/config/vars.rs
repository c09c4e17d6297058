//! Reads variables one after another and collects what is wrong with them.

use std::fmt;

use super::source::Source;

/// Everything that is wrong with the settings, one mistake a line.
#[derive(Debug)]
pub struct Errors(Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Errors {}

/// What a value has to look like, said after "expected".
pub(crate) type Expected = String;

/// A source of variables, and the mistakes found in it so far.
///
/// A wrong value is noted and its default returned, so that reading goes on; `finish` then fails,
/// and no such default is ever used.
pub(super) struct Vars<'s> {
    source: &'s dyn Source,
    mistakes: Vec<String>,
}

impl<'s> Vars<'s> {
    pub(super) fn new(source: &'s dyn Source) -> Self {
        Self { source, mistakes: Vec::new() }
    }

    /// Notes a mistake for each of `names` that is set.
    pub(super) fn refuse_unread(&mut self, names: &[&str]) {
        for name in names {
            if self.source.get(name).is_some_and(|value| !value.is_empty()) {
                self.mistake(format!("{name} is set, but this version has nothing that reads it"));
            }
        }
    }

    /// `name` as `parse` understands it, or `default` when unset.
    pub(super) fn value<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// `name` as `parse` understands it.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        self.parsed(name, parse, |text| format!("{name}={text:?}"))
    }

    /// Like [`Vars::optional`], for a variable whose value is never repeated.
    pub(super) fn secret<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        self.parsed(name, parse, |_| name.to_owned())
    }

    /// `name` as `parse` understands it; a mistake calls it what `shown` makes of its text.
    fn parsed<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
        shown: impl FnOnce(&str) -> String,
    ) -> Option<T> {
        let text = self.text(name)?;
        parse(&text)
            .map_err(|expected| {
                self.mistake(format!("{} is not valid: expected {expected}", shown(&text)));
            })
            .ok()
    }

    /// Notes a mistake that is not in one value alone.
    pub(super) fn mistake(&mut self, line: String) {
        self.mistakes.push(line);
    }

    /// `config`, unless something was wrong.
    pub(super) fn finish<T>(self, config: T) -> Result<T, Errors> {
        if self.mistakes.is_empty() { Ok(config) } else { Err(Errors(self.mistakes)) }
    }

    /// The text of `name`. Empty counts as unset: that is how compose files blank a variable.
    fn text(&mut self, name: &str) -> Option<String> {
        match self.source.get(name)?.into_string() {
            Ok(text) => Some(text).filter(|text| !text.is_empty()),
            Err(_) => {
                self.mistake(format!("{name} is not valid: expected UTF-8 text"));
                None
            }
        }
    }
}
