/// Text with `{name}` placeholders.
#[derive(Debug, Clone)]
pub struct Template;
