//! A shared directory, and its command-line form `PATH,tag=NAME[,ro]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::fs::MAX_TAG;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{ListError, OptionList, escape};

/// A directory of the host's in the guest, by virtio-fs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShareConfig {
    /// The directory.
    pub path: PathBuf,
    /// What the guest calls it.
    pub tag: String,
    /// The guest may change nothing in it.
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Why a share is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShareError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// The path is an empty string.
    #[error("the share's path is empty; name a directory")]
    EmptyPath,
    /// The tag is not there.
    #[error("share {0} has no tag; write it as PATH,tag=NAME")]
    NoTag(String),
    /// A tag of no bytes, or of too many.
    #[error("tag '{tag}' of share {path} is {} bytes; it can have 1 to {MAX_TAG}", tag.len())]
    TagLength {
        /// What was asked for.
        tag: String,
        /// Which share.
        path: String,
    },
    /// A tag that would not do as a name of a directory.
    #[error(
        "tag '{tag}' of share {path} may contain only letters, digits, '-', '_' and '.', the last not first"
    )]
    TagCharacter {
        /// What was asked for, escaped.
        tag: String,
        /// Which share.
        path: String,
    },
    /// Two shares of one name.
    #[error("two shares have the tag '{0}'; give each its own")]
    TagTwice(String),
}

impl ShareConfig {
    /// A directory that the guest may write, under the name `tag`.
    pub fn new(path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            tag: tag.into(),
            read_only: false,
        }
    }

    /// Where a guest that runs a command finds it.
    #[must_use]
    pub fn mount_point(&self) -> String {
        format!("/mnt/{}", self.tag)
    }

    /// Checks what can be known without looking at the directory.
    ///
    /// # Errors
    /// An empty path, or a tag that cannot be one.
    pub fn validate(&self) -> Result<(), ShareError> {
        if self.path.as_os_str().is_empty() {
            return Err(ShareError::EmptyPath);
        }
        let path = self.path.display().to_string();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !self.tag.bytes().all(fits) || self.tag.starts_with('.') {
            let tag = self.tag.escape_debug().to_string();
            return Err(ShareError::TagCharacter { tag, path });
        }
        if !(1..=MAX_TAG).contains(&self.tag.len()) {
            let tag = self.tag.clone();
            return Err(ShareError::TagLength { tag, path });
        }
        Ok(())
    }
}

/// Checks each, and that no two have the same tag.
pub(super) fn validate_all(shares: &[ShareConfig]) -> Result<(), ShareError> {
    for (at, share) in shares.iter().enumerate() {
        share.validate()?;
        if shares[..at].iter().any(|other| other.tag == share.tag) {
            return Err(ShareError::TagTwice(share.tag.clone()));
        }
    }
    Ok(())
}

impl FromStr for ShareConfig {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, mut list) = OptionList::with_head(text)?;
        let (tag, read_only) = (list.value("tag")?, list.switch("ro")?);
        list.finish()?;
        let share = Self {
            tag: tag.ok_or_else(|| ShareError::NoTag(path.clone()))?,
            path: path.into(),
            read_only,
        };
        share.validate()?;
        Ok(share)
    }
}

impl fmt::Display for ShareConfig {
    /// The command-line form; with a path that is UTF-8 it reads back as the same share.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = escape(&self.path.to_string_lossy());
        write!(f, "{path},tag={}", self.tag)?;
        if self.read_only {
            f.write_str(",ro")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, path, tag, read_only) in [
            (".,tag=src", ".", "src", false),
            ("a,,b=c,tag=x_1.y-Z,ro", "a,b=c", "x_1.y-Z", true),
        ] {
            let share: ShareConfig = text.parse().unwrap();
            let expected = ShareConfig {
                read_only,
                ..ShareConfig::new(path, tag)
            };
            assert_eq!(share, expected);
            assert_eq!(share.to_string(), text);
        }
        assert_eq!(ShareConfig::new(".", "src").mount_point(), "/mnt/src");
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        let long = "x".repeat(37);
        for (text, message) in [
            (".", "share . has no tag; write it as PATH,tag=NAME"),
            (".,tag", "'tag' needs a value; write tag=VALUE"),
            (
                ".,tag=",
                "tag '' of share . is 0 bytes; it can have 1 to 36",
            ),
            (
                &format!(".,tag={long}"),
                &format!("tag '{long}' of share . is 37 bytes; it can have 1 to 36"),
            ),
            (
                ".,tag=a/b",
                "tag 'a/b' of share . may contain only letters, digits, '-', '_' and '.', the last not first",
            ),
            (
                ".,tag=..",
                "tag '..' of share . may contain only letters, digits, '-', '_' and '.', the last not first",
            ),
            (
                ".,tag=a,rw",
                "unknown key 'rw', did you mean 'ro'?; known keys: tag, ro",
            ),
            (".,tag=a,tag=b", "'tag' is given twice"),
        ] {
            let error = text.parse::<ShareConfig>().unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
        assert!(".,tag=a b".parse::<ShareConfig>().is_err());
        assert!(
            format!(".,tag={}", &long[1..])
                .parse::<ShareConfig>()
                .is_ok()
        );
        let twice = [ShareConfig::new("a", "t"), ShareConfig::new("b", "t")];
        assert_eq!(
            validate_all(&twice).unwrap_err().to_string(),
            "two shares have the tag 't'; give each its own"
        );
        let nowhere = ShareConfig::new("", "t").validate().unwrap_err();
        assert_eq!(
            nowhere.to_string(),
            "the share's path is empty; name a directory"
        );
    }
}
