//! The exit statuses that scripts rely on, and what earns each.

/// Something expected did not come, or something came that must not.
pub const EXPECTATION_FAILED: u8 = 122;
/// The guest panicked or triple-faulted.
pub const GUEST_CRASHED: u8 = 123;
/// `--timeout` ran out, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;
/// mvm itself failed, as env(1), timeout(1) and docker(1) have it.
pub const MVM_FAILED: u8 = 125;
/// `mvm doctor` found that stock kernels do not boot here.
pub const DOCTOR_UNFIT: u8 = 1;
/// One of the cases of `mvm test` did not pass.
pub const TEST_FAILED: u8 = 1;
/// A signal ended the VM: this plus its number, as a shell has it.
pub const SIGNAL_BASE: u8 = 128;
/// The VM was ended by its user, and its command with it: as SIGKILL ends one.
pub const KILLED: u8 = SIGNAL_BASE + 9;
