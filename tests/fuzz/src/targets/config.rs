//! Configurations in TOML and JSON, as embedders and the command line read them.

use vmm::config::VmConfig;

use crate::target::Target;

/// The target. Its input is a text.
#[derive(Debug)]
pub struct Config;

impl Target for Config {
    fn name(&self) -> &str {
        "config"
    }

    fn about(&self) -> String {
        "configurations of a VM, in TOML or JSON".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        for config in [
            toml::from_str::<VmConfig>(&text).ok(),
            serde_json::from_str::<VmConfig>(&text).ok(),
        ]
        .into_iter()
        .flatten()
        {
            if let Err(error) = config.validate() {
                drop(error.to_string());
            }
            let json = serde_json::to_string(&config).expect("a configuration can be written");
            let again: VmConfig = serde_json::from_str(&json).expect("and read");
            assert_eq!(again, config);
        }
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        [
            "kernel = \"vmlinux\"\n",
            "kernel = \"k\"\ncpus = 2\nmem = \"1G\"\nrootfs = { path = \"img\", ro = true }\ndisk = [{ path = \"d\", serial = \"s\" }]\nacpi = false\n",
            "{\"kernel\":\"k\",\"initrd\":\"i\",\"cmdline\":\"c\",\"append\":\"a\",\"io-threads\":4}",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}
