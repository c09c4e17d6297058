//! The Redis tier: what one instance fetched, the others need not fetch.
//!
//! | module | |
//! |---|---|
//! | [`codec`] | the bytes a stored response is in Redis |

pub mod codec;
