//! Legacy PC chips.
