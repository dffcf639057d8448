//! One attack, and how it is written down.

use std::fmt;

use super::Attack;

/// An attack.
pub struct Case {
    /// What the guest does, in a few words.
    pub name: String,
    /// How often it is done.
    pub scope: Scope,
    /// What must come of it.
    pub expect: Expect,
    /// Does it.
    pub act: Box<dyn Fn(&mut Attack) + Send + Sync>,
}

/// What an attack is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The device; it is done once.
    Device,
    /// A queue; it is done once for each, on a device of its own.
    Queue,
}

/// What must come of an attack, beside what must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The device says that it needs a reset. Asked only of queues that the device takes requests from.
    Reset,
    /// It does not.
    Fine,
    /// Either.
    Either,
}

impl Case {
    /// A case.
    pub fn new(
        name: impl Into<String>,
        scope: Scope,
        expect: Expect,
        act: impl Fn(&mut Attack) + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            scope,
            expect,
            act: Box::new(act),
        }
    }
}

/// A line of a table of attacks.
pub type Row = (&'static str, Expect, fn(&mut Attack));

/// Cases from a table.
#[must_use]
pub fn table(scope: Scope, rows: &[Row]) -> Vec<Case> {
    rows.iter()
        .map(|&(name, expect, act)| Case::new(name, scope, expect, act))
        .collect()
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("scope", &self.scope)
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}
