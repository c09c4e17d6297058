//! Where variables come from: the process, or a map in a test.

use std::{collections::BTreeMap, ffi::OsString};

/// Looks variables up by name.
pub trait Source {
    /// The value as the operating system holds it; `None` when there is no such variable.
    fn get(&self, name: &str) -> Option<OsString>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct Environment;

impl Source for Environment {
    fn get(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }
}

impl Source for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<OsString> {
        self.get(name).map(OsString::from)
    }
}
