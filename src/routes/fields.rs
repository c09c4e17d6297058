//! Reads the values of a section. Those that are not of their declared kind, which the checker has
//! reported, read as absent.

use std::time::Duration;

use super::{
    check,
    keys::Section,
    yaml::{Node, Value},
};
use crate::config::values;

/// The entries of one section, or none where the file has something else in its place.
#[derive(Clone, Copy)]
pub(super) struct Fields<'n> {
    section: &'static Section,
    entries: &'n [(Node, Node)],
}

impl<'n> Fields<'n> {
    pub(super) fn of(node: &'n Node, section: &'static Section) -> Self {
        Self { section, entries: entries(node) }
    }

    /// The value of `key`. A key that is not declared would never pass the checker.
    pub(super) fn node(&self, key: &str) -> Option<&'n Node> {
        debug_assert!(self.section.keys.iter().any(|declared| declared.name == key), "{key}");
        self.entries.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }

    pub(super) fn section(&self, key: &str, section: &'static Section) -> Option<Fields<'n>> {
        self.node(key).map(|node| Fields::of(node, section))
    }

    /// The sections of a key that takes one map or a list of maps, and where they are.
    pub(super) fn sections(
        &self,
        key: &str,
        section: &'static Section,
    ) -> impl Iterator<Item = (Fields<'n>, &'n Node)> + use<'n> {
        let nodes: &[Node] = match self.node(key) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) => items,
            Some(node) => std::slice::from_ref(node),
        };
        nodes.iter().map(move |node| (Fields::of(node, section), node))
    }

    /// A text and where it is.
    pub(super) fn text(&self, key: &str) -> Option<(&'n str, &'n Node)> {
        let node = self.node(key)?;
        Some((node.text()?, node))
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str) -> impl Iterator<Item = (&'n str, &'n Node)> + use<'n> {
        self.items(key).iter().filter_map(|item| Some((item.text()?, item)))
    }

    pub(super) fn items(&self, key: &str) -> &'n [Node] {
        match self.node(key).map(|node| &node.value) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    /// The texts of a map with keys of the user's choice.
    pub(super) fn named(&self, key: &str) -> &'n [(Node, Node)] {
        self.node(key).map(entries).unwrap_or_default()
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        check::boolean(self.node(key)?)
    }

    /// A whole number; the declared ranges fit 32 bits.
    pub(super) fn integer(&self, key: &str) -> Option<u32> {
        u32::try_from(check::integer(self.node(key)?)?).ok()
    }

    pub(super) fn duration(&self, key: &str) -> Option<Duration> {
        values::duration(&check::scalar(self.node(key)?)?).ok()
    }

    pub(super) fn size(&self, key: &str) -> Option<u64> {
        values::size(&check::scalar(self.node(key)?)?).ok()
    }
}

fn entries(node: &Node) -> &[(Node, Node)] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}
