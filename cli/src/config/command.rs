//! The settings of a command in the guest.

use vmm::config::CommandConfig;

use super::{Settings, SettingsError};

impl Settings {
    /// The command that they ask for, if any.
    pub(super) fn command(&self) -> Result<Option<CommandConfig>, SettingsError> {
        if self.words.is_empty() {
            let settings = [
                ("env", !self.env.is_empty()),
                ("workdir", self.workdir.is_some()),
                ("modules", self.modules.is_some()),
            ];
            return match settings.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(SettingsError::NoCommand(name)),
                None => Ok(None),
            };
        }
        Ok(Some(CommandConfig {
            env: self
                .env
                .iter()
                .map(|variable| with_value(variable))
                .collect::<Result<_, _>>()?,
            workdir: self.workdir.clone(),
            modules: self.modules.clone(),
            ..CommandConfig::new(&self.words)
        }))
    }
}

/// A variable with its value: the given one, or mvm's own.
fn with_value(variable: &str) -> Result<String, SettingsError> {
    if variable.contains('=') {
        return Ok(variable.to_owned());
    }
    let value = std::env::var(variable);
    let value = value.map_err(|_| SettingsError::NoVariable(variable.to_owned()))?;
    Ok(format!("{variable}={value}"))
}
