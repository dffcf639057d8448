//! Attacks that every device has to endure, whatever it is.

mod chain;
mod indirect;
mod race;
mod registers;
mod ring;
mod setup;

use super::case::Case;

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        ring::cases(),
        chain::cases(),
        indirect::cases(),
        setup::cases(),
        registers::cases(),
        race::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
