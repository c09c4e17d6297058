//! Writes Prometheus's text format, version 0.0.4, so that what comes out is always valid.

use std::fmt::{Display, Write as _};

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// One metric name and its samples; the samples of a family must stand together.
#[derive(Debug)]
pub struct Family<'p> {
    text: &'p mut String,
    name: &'p str,
}

impl Exposition {
    /// The media type of the page.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family of numbers that only grow; the name ends in `_total`.
    pub fn counter<'p>(&'p mut self, name: &'p str, help: &str) -> Family<'p> {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family("counter", name, help)
    }

    /// Begins a family of numbers that go up and down; the name ends in the unit.
    pub fn gauge<'p>(&'p mut self, name: &'p str, help: &str) -> Family<'p> {
        self.family("gauge", name, help)
    }

    /// Begins a family of distributions; the name ends in the unit.
    pub fn histogram<'p>(&'p mut self, name: &'p str, help: &str) -> Family<'p> {
        self.family("histogram", name, help)
    }

    fn family<'p>(&'p mut self, kind: &str, name: &'p str, help: &str) -> Family<'p> {
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push(' ');
        escape(&mut self.text, help, false);
        put(&mut self.text, format_args!("\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.text, name }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds one sample; no two of a family have the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// Adds one distribution: for each bucket its upper bound and how many values it holds alone
    /// (the last bound is infinity), and the sum of all values.
    pub fn distribution(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
    ) -> &mut Self {
        let mut count = 0;
        for (bound, values) in buckets {
            count += values;
            let bound = match bound.is_finite() {
                true => bound.to_string(),
                false => "+Inf".to_owned(),
            };
            self.line("_bucket", labels, Some(("le", &bound)), count);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
        self
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        last: Option<(&str, &str)>,
        value: impl Display,
    ) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels.iter().chain(&last) {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(self.text, value, true);
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        put(self.text, format_args!(" {value}\n"));
    }
}

/// Help escapes backslash and line feed; a label value the quote as well.
fn escape(out: &mut String, text: &str, quote: bool) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quote => out.push_str("\\\""),
            _ => out.push(character),
        }
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A `String` takes everything.
    let _ = out.write_fmt(text);
}
