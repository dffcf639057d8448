//! What the system says of the machine it runs on: processor, hypervisor, cloud, KVM module.
//!
//! Read from /proc and /sys, so hints for the user and never the ground of a decision; that is
//! [`vmm::probe`]'s. Used by `mvm doctor`.

use std::fs;
use std::path::PathBuf;

/// Where /proc, /sys and /dev are; a test has its own.
#[derive(Debug)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// The running system.
    pub fn this() -> Self {
        Self { root: "/".into() }
    }

    /// A system below another directory.
    #[cfg(test)]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The real path of an absolute one.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// A small file's text without surrounding space; `None` where it cannot be read.
    pub fn text(&self, absolute: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(absolute)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Whether there is such a file or directory.
    pub fn has(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }
}

/// The kernel modules that implement KVM on x86-64.
const KVM_MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// A provider whose machines say who made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Google,
    /// Microsoft Azure, or Hyper-V elsewhere.
    Microsoft,
    /// Some virtual machine.
    Other,
}

impl Provider {
    /// How to get a machine whose processor virtualises.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Aws => {
                "use an EC2 .metal instance, or a C8i, M8i or R8i one with nested virtualization enabled in its CPU options"
            }
            Self::Google => {
                "create the instance with --enable-nested-virtualization, on a machine type that has it (N1, N2, C3, not E2)"
            }
            Self::Microsoft => {
                "use an Azure size with nested virtualization (Dv3, Ev3 and later of the general-purpose series), or on Hyper-V Set-VMProcessor -ExposeVirtualizationExtensions"
            }
            Self::Other => {
                "have nested virtualization turned on for this machine (on a KVM host: kvm_intel or kvm_amd with nested=1, and the guest CPU model 'host'), or use a bare-metal one"
            }
        }
    }
}

/// What is known of the host by its own account.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The module that implements KVM, where one is loaded.
    pub kvm_module: Option<&'static str>,
    /// The module that this processor would use, where it virtualises at all.
    pub wanted_module: Option<&'static str>,
    /// The processor's name.
    pub cpu: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// Whose virtual machine this is; `None` on bare metal.
    pub provider: Option<Provider>,
}

impl Host {
    /// Reads what there is.
    pub fn of(system: &System) -> Self {
        let cpuinfo = system.text("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim())
        };
        let flags = field("flags").unwrap_or_default();
        let flag = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
        Self {
            kvm_module: KVM_MODULES
                .into_iter()
                .find(|module| system.has(&format!("/sys/module/{module}"))),
            wanted_module: match (flag("vmx"), flag("svm")) {
                (true, _) => Some("kvm_intel"),
                (_, true) => Some("kvm_amd"),
                _ => None,
            },
            cpu: field("model name").map(str::to_owned),
            kernel: system.text("/proc/sys/kernel/osrelease"),
            provider: flag("hypervisor").then(|| provider(system)),
        }
    }

    /// How to get hardware virtualisation here.
    pub fn remedy(&self) -> String {
        match (self.wanted_module, self.provider) {
            (Some(module), _) => format!("load the processor's own module: sudo modprobe {module}"),
            (None, Some(provider)) => provider.remedy().to_owned(),
            (None, None) => {
                "turn on VT-x or AMD-V (SVM) in the firmware set-up of this machine".to_owned()
            }
        }
    }
}

/// DMI tells the maker of the virtual machine, where the hypervisor gives it one.
fn provider(system: &System) -> Provider {
    let field = |name| system.text(&format!("/sys/class/dmi/id/{name}"));
    let vendor = field("sys_vendor").unwrap_or_default();
    let product = field("product_name").unwrap_or_default();
    if vendor.starts_with("Amazon EC2") {
        Provider::Aws
    } else if vendor == "Google" || product.starts_with("Google") {
        Provider::Google
    } else if vendor.starts_with("Microsoft") {
        Provider::Microsoft
    } else {
        Provider::Other
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A system of the files given; a path that ends in a slash is a directory.
    pub fn system(files: &[(&str, &str)]) -> (TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let system = System::at(dir.path());
        for (name, text) in files {
            let path = system.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::write(path, text).unwrap();
            }
        }
        (dir, system)
    }

    #[test]
    fn bare_metal_with_its_module() {
        let (_dir, system) = system(&[
            (
                "/proc/cpuinfo",
                "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu vmx sse\n",
            ),
            ("/proc/sys/kernel/osrelease", "6.12.0\n"),
            ("/sys/module/kvm_intel/", ""),
        ]);
        let host = Host::of(&system);
        assert_eq!(
            host,
            Host {
                kvm_module: Some("kvm_intel"),
                wanted_module: Some("kvm_intel"),
                cpu: Some("A CPU @ 3 GHz".to_owned()),
                kernel: Some("6.12.0".to_owned()),
                provider: None,
            }
        );
        assert_eq!(
            host.remedy(),
            "load the processor's own module: sudo modprobe kvm_intel"
        );
    }

    #[test]
    fn clouds_are_told_apart_and_each_has_its_remedy() {
        for (vendor, product, provider, remedy) in [
            ("Amazon EC2", "m5.large", Provider::Aws, ".metal"),
            (
                "Google",
                "Google Compute Engine",
                Provider::Google,
                "--enable-nested",
            ),
            (
                "Microsoft Corporation",
                "Virtual Machine",
                Provider::Microsoft,
                "Dv3",
            ),
            ("QEMU", "Standard PC", Provider::Other, "nested=1"),
        ] {
            let (_dir, system) = system(&[
                ("/proc/cpuinfo", "flags : hypervisor\n"),
                ("/sys/class/dmi/id/sys_vendor", vendor),
                ("/sys/class/dmi/id/product_name", product),
            ]);
            let host = Host::of(&system);
            assert_eq!(host.provider, Some(provider));
            assert!(host.remedy().contains(remedy), "{}", host.remedy());
        }
    }

    #[test]
    fn an_empty_system_is_unknown() {
        let (_dir, system) = system(&[]);
        let host = Host::of(&system);
        assert_eq!(host, Host::default());
        assert!(host.remedy().contains("firmware"));
    }
}
