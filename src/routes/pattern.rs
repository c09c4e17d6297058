/// A path pattern.
#[derive(Debug)]
pub struct PathPattern;
