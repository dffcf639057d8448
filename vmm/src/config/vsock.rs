//! A vsock, and its command-line form `cid=N,uds=PATH`.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList, escape};
use crate::socket::MAX_PATH;

/// Virtio 1.2 §5.10.4: the addresses 0, 1, 2 and all ones are nobody's or the host's.
const FIRST_CID: u32 = 3;
const LAST_CID: u32 = u32::MAX - 1;

/// What comes behind the path for a port, at most: `_4294967295`.
const PORT_SUFFIX: usize = 11;

/// Stream sockets between the guest and the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VsockConfig {
    /// The guest's address. It is the guest's alone: other VMs may have the same.
    pub cid: u32,
    /// Where host programs connect, and what the paths begin with to which the guest connects. Without
    /// it only this process reaches the guest, by [`crate::VmHandle::vsock`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds: Option<PathBuf>,
}

/// Why a vsock is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VsockConfigError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// A key is not there.
    #[error("the vsock lacks its {0}; write it as cid=3,uds=PATH")]
    Missing(&'static str),
    /// An address that is no number, or not a guest's.
    #[error("'{0}' is not a guest's vsock address; give a cid from {FIRST_CID} to {LAST_CID}")]
    Cid(String),
    /// The path is an empty string.
    #[error("the path of the vsock's socket is empty; name one that does not exist")]
    EmptyPath,
    /// The path is longer than the system allows, or is so with a port.
    #[error(
        "vsock socket {} has a path of {length} bytes; with '_PORT' behind it, at most {max} are possible; choose a shorter one",
        .path.display(),
        max = MAX_PATH - PORT_SUFFIX
    )]
    Length {
        /// The path as given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
}

impl VsockConfig {
    /// One that only this process reaches.
    pub(crate) fn private() -> Self {
        Self {
            cid: FIRST_CID,
            uds: None,
        }
    }

    /// A vsock that only this process reaches.
    pub fn new(cid: u32) -> Self {
        Self { cid, uds: None }
    }

    /// Checks what can be known without touching the host.
    ///
    /// # Errors
    /// An address that no guest can have, or a path that no socket can have.
    pub fn validate(&self) -> Result<(), VsockConfigError> {
        if !(FIRST_CID..=LAST_CID).contains(&self.cid) {
            return Err(VsockConfigError::Cid(self.cid.to_string()));
        }
        let Some(path) = &self.uds else {
            return Ok(());
        };
        match path.as_os_str().as_bytes().len() {
            0 => Err(VsockConfigError::EmptyPath),
            length if length > MAX_PATH - PORT_SUFFIX => Err(VsockConfigError::Length {
                path: path.clone(),
                length,
            }),
            _ => Ok(()),
        }
    }
}

impl FromStr for VsockConfig {
    type Err = VsockConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list = OptionList::of_keys(text)?;
        let (cid, uds) = (list.value("cid")?, list.value("uds")?);
        list.finish()?;
        let cid = cid.ok_or(VsockConfigError::Missing("cid"))?;
        let vsock = Self {
            cid: cid.parse().map_err(|_| VsockConfigError::Cid(cid))?,
            uds: Some(uds.ok_or(VsockConfigError::Missing("uds"))?.into()),
        };
        vsock.validate()?;
        Ok(vsock)
    }
}

impl fmt::Display for VsockConfig {
    /// The command-line form; with a path that is UTF-8 it reads back as the same vsock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={}", self.cid)?;
        match &self.uds {
            Some(uds) => write!(f, ",uds={}", escape(&uds.to_string_lossy())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, cid, uds) in [
            ("cid=3,uds=/run/vm.vsock", 3, "/run/vm.vsock"),
            ("cid=4294967294,uds=a,,b=c", u32::MAX - 1, "a,b=c"),
        ] {
            let vsock: VsockConfig = text.parse().unwrap();
            assert_eq!((vsock.cid, vsock.uds.as_deref()), (cid, Some(uds.as_ref())));
            assert_eq!(vsock.to_string(), text);
        }
        let turned: VsockConfig = "uds=v,cid=7".parse().unwrap();
        assert_eq!(turned.to_string(), "cid=7,uds=v");
        assert_eq!(VsockConfig::new(5).to_string(), "cid=5");
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        for (text, message) in [
            (
                "cid=2,uds=v",
                "'2' is not a guest's vsock address; give a cid from 3 to 4294967294",
            ),
            (
                "cid=4294967295,uds=v",
                "'4294967295' is not a guest's vsock address; give a cid from 3 to 4294967294",
            ),
            (
                "cid=x,uds=v",
                "'x' is not a guest's vsock address; give a cid from 3 to 4294967294",
            ),
            (
                "uds=v",
                "the vsock lacks its cid; write it as cid=3,uds=PATH",
            ),
            (
                "cid=3",
                "the vsock lacks its uds; write it as cid=3,uds=PATH",
            ),
            (
                "cid=3,uds=",
                "the path of the vsock's socket is empty; name one that does not exist",
            ),
            ("cid=3,path=v", "unknown key 'path'; known keys: cid, uds"),
            ("cid=3,cid=4,uds=v", "'cid' is given twice"),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
    }

    #[test]
    fn there_is_room_for_a_port_behind_the_path() {
        let with = |len| format!("cid=3,uds={}", "x".repeat(len)).parse::<VsockConfig>();
        assert!(with(96).is_ok());
        let error = with(97).unwrap_err().to_string();
        assert!(
            error.contains("a path of 97 bytes; with '_PORT' behind it, at most 96"),
            "{error}"
        );
    }
}
