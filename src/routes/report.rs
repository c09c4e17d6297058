//! Collects what is wrong with a routes file and shows each mistake where it is.

use std::fmt;

use super::yaml::Place;

/// Longer lines are cut in messages.
const MAX_SNIPPET: usize = 160;

/// Everything that is wrong with a routes file.
#[derive(Debug)]
pub struct RouteErrors {
    name: String,
    mistakes: Vec<Mistake>,
}

#[derive(Debug)]
struct Mistake {
    place: Place,
    message: String,
    /// The line of the file, as it is written.
    line: String,
}

impl RouteErrors {
    /// The one mistake that there is no file to look into.
    pub(super) fn unreadable(name: String, error: &std::io::Error) -> Self {
        let message = format!("cannot be read: {error}");
        let mistake = Mistake { place: Place::default(), message, line: String::new() };
        Self { name, mistakes: vec![mistake] }
    }
}

impl fmt::Display for RouteErrors {
    /// Every mistake as `file:line:column: what is wrong`, the line, and a mark below the column.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Place { line, column } = mistake.place;
            let message: String = mistake.message.chars().map(visible).collect();
            if line == 0 {
                write!(f, "{}: {message}", self.name)?;
                continue;
            }
            writeln!(f, "{}:{line}:{column}: {message}", self.name)?;
            let shown = mistake.line.chars().take(MAX_SNIPPET).map(visible).collect::<String>();
            write!(f, "{line:>5} | {shown}")?;
            if (1..=MAX_SNIPPET).contains(&column) {
                write!(f, "\n      | {:>column$}", "^")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for RouteErrors {}

/// Tabs as one column, and nothing that a terminal would act on.
fn visible(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

/// The mistakes found so far in one file.
pub(super) struct Report<'t> {
    name: &'t str,
    text: &'t str,
    mistakes: Vec<(Place, String)>,
}

impl<'t> Report<'t> {
    pub(super) fn new(name: &'t str, text: &'t str) -> Self {
        Self { name, text, mistakes: Vec::new() }
    }

    pub(super) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.mistakes.push((place, message.into()));
    }

    pub(super) fn is_clean(&self) -> bool {
        self.mistakes.is_empty()
    }

    /// The mistakes in the file's order, with the lines they are on.
    pub(super) fn into_errors(mut self) -> RouteErrors {
        self.mistakes.sort_by_key(|(place, _)| *place);
        // An anchor's mistakes come up again wherever it is used.
        self.mistakes.dedup();
        let lines: Vec<&str> = self.text.lines().collect();
        let mistakes = self.mistakes.into_iter().map(|(place, message)| {
            let line = place.line.checked_sub(1).and_then(|index| lines.get(index));
            Mistake { place, message, line: (*line.unwrap_or(&"")).to_owned() }
        });
        RouteErrors { name: self.name.to_owned(), mistakes: mistakes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_shown_in_order_where_they_are() {
        let mut report = Report::new("r.yaml", "a: 1\n\tb: 2\n");
        report.error(Place { line: 2, column: 2 }, "second");
        report.error(Place { line: 1, column: 4 }, "first");
        report.error(Place { line: 2, column: 2 }, "second");
        let shown = report.into_errors().to_string();
        assert_eq!(
            shown,
            "r.yaml:1:4: first\n    1 | a: 1\n      |    ^\nr.yaml:2:2: second\n    2 |  b: 2\n      |  ^"
        );
    }
}
