//! (corpus runner follows)
