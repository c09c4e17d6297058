//! The route table.

pub mod model;
mod pattern;
mod template;

pub use model::*;
