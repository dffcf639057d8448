//! The message for a guest that stopped because KVM could not emulate an instruction of it.
//!
//! KVM says only where and, at best, the bytes. The user is told which instruction that is, whether this
//! host's KVM is to blame or the guest, and what to do.

use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use vmm::probe::{HostKind, probe_host};

use crate::host::{Host, System};

/// One line: what failed, where, why, and the remedy.
pub fn explain(rip: u64, bytes: &[u8]) -> String {
    // A probe that fails says nothing of the host, so nothing is said of it.
    let kind = probe_host().ok();
    compose(rip, bytes, kind, &Host::of(&System::this()))
}

fn compose(rip: u64, bytes: &[u8], kind: Option<HostKind>, host: &Host) -> String {
    let what = match instruction(rip, bytes) {
        Some(text) => format!("'{text}' at {rip:#x}"),
        None => format!("the instruction at {rip:#x}"),
    };
    let module = host.kvm_module.unwrap_or("no known module");
    let why = match kind {
        Some(HostKind::Software) => format!(
            "this host has software KVM ({module}), which interprets guest kernel code and does not know all of it; \
             boot stock kernels on a host with hardware virtualization, see 'mvm doctor'"
        ),
        Some(HostKind::Hardware) => format!(
            "this host has hardware KVM ({module}), so the guest used it on an address where no memory is, or ran astray; \
             check the kernel for this machine"
        ),
        Some(HostKind::None) | None => "see 'mvm doctor' for what this host can run".to_owned(),
    };
    format!("KVM cannot emulate {what} for the guest: {why}")
}

/// The instruction that `bytes` begin with, as 64-bit code.
fn instruction(rip: u64, bytes: &[u8]) -> Option<String> {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut text = String::new();
    let mut formatter = FastFormatter::new();
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_use_hex_prefix(true);
    formatter.format(&instruction, &mut text);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_names() {
        for (bytes, text) in [
            (&[0xcc_u8][..], "int3"),
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0x90], "popcnt rax,rbx"),
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], "lock cmpxchg16b [rdi]"),
            (&[0x48, 0x0f, 0xc7, 0x1f], "xrstors64 [rdi]"),
        ] {
            assert_eq!(instruction(0x1000, bytes).as_deref(), Some(text));
        }
        assert_eq!(instruction(0, &[]), None);
        assert_eq!(instruction(0, &[0x48, 0x0f]), None, "cut short");
    }

    #[test]
    fn the_host_decides_who_is_to_blame() {
        let host = Host {
            kvm_module: Some("kvm_pvm"),
            ..Host::default()
        };
        let line = compose(
            0xffff_ffff_8100_0000,
            &[0xcc],
            Some(HostKind::Software),
            &host,
        );
        assert!(
            line.starts_with("KVM cannot emulate 'int3' at 0xffffffff81000000 for the guest: "),
            "{line}"
        );
        assert!(line.contains("software KVM (kvm_pvm)"), "{line}");
        assert!(line.ends_with("see 'mvm doctor'"), "{line}");
        let line = compose(0x10, &[], Some(HostKind::Hardware), &host);
        assert!(line.contains("the instruction at 0x10"), "{line}");
        assert!(line.contains("hardware KVM"), "{line}");
        assert!(!compose(0x10, &[], None, &host).contains('\n'));
    }
}
