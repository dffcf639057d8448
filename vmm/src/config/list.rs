//! The one reader of comma-separated option values: `img.ext4,ro,serial=root`.
//!
//! Every option that takes such a list reads it here, so all of them quote, complain and suggest alike.
//! A list may open with a bare value (a path, a device name); what follows is `key=value` or a bare key.
//! A comma that belongs to a value is written twice. Pure text, no I/O.

use thiserror::Error;

/// A list split into its parts, from which an option takes what it knows.
///
/// Taking records the key as known, so that [`OptionList::finish`] can name all of them when something is
/// left over.
#[derive(Debug)]
pub struct OptionList {
    items: Vec<Item>,
    known: Vec<&'static str>,
}

#[derive(Debug)]
struct Item {
    key: String,
    value: Option<String>,
}

/// A value that is one of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// All values and their words.
    const NAMES: &'static [(&'static str, Self)];

    /// The value's word.
    fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, value)| *value == self);
        named.map_or("", |(name, _)| name)
    }
}

/// Why a comma list could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListError {
    /// Nothing between two commas, or at an end.
    #[error("'{0}' has an empty part; write a comma that belongs to a value twice")]
    EmptyPart(String),
    /// A key that this option does not have.
    #[error("unknown key '{key}'{}; known keys: {}", suggestion(closest), known.join(", "))]
    UnknownKey {
        /// What was written.
        key: String,
        /// The known key that looks most like it, where one does.
        closest: Option<&'static str>,
        /// All keys of this option.
        known: Vec<&'static str>,
    },
    /// The same key a second time.
    #[error("'{0}' is given twice")]
    Duplicate(String),
    /// A key that needs a value came without one.
    #[error("'{key}' needs a value; write {key}=VALUE")]
    MissingValue {
        /// The key.
        key: &'static str,
    },
    /// A value that is none of the few that there are.
    #[error("'{key}={value}' is not one of {}", known.join(", "))]
    NotAChoice {
        /// The key.
        key: &'static str,
        /// What was written after the equals sign.
        value: String,
        /// What could have been.
        known: Vec<&'static str>,
    },
    /// A switch got something other than on or off.
    #[error("'{key}={value}' is neither on nor off; write '{key}', '{key}=on' or '{key}=off'")]
    NotASwitch {
        /// The key.
        key: &'static str,
        /// What was written after the equals sign.
        value: String,
    },
}

fn suggestion(closest: &Option<&'static str>) -> String {
    closest.map_or_else(String::new, |key| format!(", did you mean '{key}'?"))
}

impl OptionList {
    /// Splits a list that opens with a bare value and gives that value too.
    ///
    /// The bare value may contain `=`; it ends at the first single comma.
    ///
    /// # Errors
    /// [`ListError::EmptyPart`] also where the leading value is missing.
    pub fn with_head(text: &str) -> Result<(String, Self), ListError> {
        let mut parts = split(text)?.into_iter();
        let head = parts
            .next()
            .ok_or_else(|| ListError::EmptyPart(text.to_owned()))?;
        Ok((head, Self::from_parts(parts)))
    }

    /// Splits a list that is all keys.
    ///
    /// # Errors
    /// [`ListError::EmptyPart`].
    pub fn of_keys(text: &str) -> Result<Self, ListError> {
        Ok(Self::from_parts(split(text)?.into_iter()))
    }

    fn from_parts(parts: impl Iterator<Item = String>) -> Self {
        let items = parts
            .map(|part| match part.split_once('=') {
                Some((key, value)) => Item {
                    key: key.to_owned(),
                    value: Some(value.to_owned()),
                },
                None => Item {
                    key: part,
                    value: None,
                },
            })
            .collect();
        Self {
            items,
            known: Vec::new(),
        }
    }

    /// Takes a switch: absent is off, `key` and `key=on` are on, `key=off` is off.
    ///
    /// # Errors
    /// [`ListError::Duplicate`], [`ListError::NotASwitch`].
    pub fn switch(&mut self, key: &'static str) -> Result<bool, ListError> {
        self.switch_or(key, false)
    }

    /// As [`Self::switch`], but absent is `default`.
    ///
    /// # Errors
    /// As for [`Self::switch`].
    pub fn switch_or(&mut self, key: &'static str, default: bool) -> Result<bool, ListError> {
        let Some(item) = self.take(key)? else {
            return Ok(default);
        };
        match item.value.as_deref() {
            None | Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(value) => Err(ListError::NotASwitch {
                key,
                value: value.to_owned(),
            }),
        }
    }

    /// Takes `key=value`.
    ///
    /// # Errors
    /// [`ListError::Duplicate`], [`ListError::MissingValue`].
    pub fn value(&mut self, key: &'static str) -> Result<Option<String>, ListError> {
        let Some(item) = self.take(key)? else {
            return Ok(None);
        };
        item.value.map(Some).ok_or(ListError::MissingValue { key })
    }

    /// Takes a key that may have a value: absent, bare, or with it.
    ///
    /// # Errors
    /// [`ListError::Duplicate`].
    pub fn optional_value(
        &mut self,
        key: &'static str,
    ) -> Result<Option<Option<String>>, ListError> {
        Ok(self.take(key)?.map(|item| item.value))
    }

    /// Takes `key=word`.
    ///
    /// # Errors
    /// As for [`value`](Self::value), and [`ListError::NotAChoice`].
    pub fn choice<T: Choice>(&mut self, key: &'static str) -> Result<Option<T>, ListError> {
        let Some(word) = self.value(key)? else {
            return Ok(None);
        };
        match T::NAMES.iter().find(|(name, _)| *name == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(ListError::NotAChoice {
                key,
                value: word,
                known: T::NAMES.iter().map(|(name, _)| *name).collect(),
            }),
        }
    }

    /// Takes every `key=value`, in order: for a key that may be repeated.
    ///
    /// # Errors
    /// [`ListError::MissingValue`].
    pub fn values(&mut self, key: &'static str) -> Result<Vec<String>, ListError> {
        self.known.push(key);
        let (mine, rest) = std::mem::take(&mut self.items)
            .into_iter()
            .partition(|item| item.key == key);
        self.items = rest;
        let mine: Vec<Item> = mine;
        mine.into_iter()
            .map(|item| item.value.ok_or(ListError::MissingValue { key }))
            .collect()
    }

    /// Ends the reading: whatever was not taken is unknown.
    ///
    /// # Errors
    /// [`ListError::UnknownKey`] for the first leftover.
    pub fn finish(self) -> Result<(), ListError> {
        match self.items.into_iter().next() {
            None => Ok(()),
            Some(item) => Err(ListError::UnknownKey {
                closest: closest(&item.key, &self.known),
                key: item.key,
                known: self.known,
            }),
        }
    }

    fn take(&mut self, key: &'static str) -> Result<Option<Item>, ListError> {
        self.known.push(key);
        let Some(at) = self.items.iter().position(|item| item.key == key) else {
            return Ok(None);
        };
        let item = self.items.remove(at);
        if self.items.iter().any(|item| item.key == key) {
            return Err(ListError::Duplicate(key.to_owned()));
        }
        Ok(Some(item))
    }
}

/// Writes a value so that [`OptionList`] reads it back as one.
#[must_use]
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// The parts between single commas, with `,,` read as one comma of the value.
fn split(text: &str) -> Result<Vec<String>, ListError> {
    let parts = split_at(text, ',');
    if parts.iter().any(String::is_empty) {
        return Err(ListError::EmptyPart(text.to_owned()));
    }
    Ok(parts)
}

/// The parts between single `separator`s, of which two are one that belongs to a part.
#[must_use]
pub fn split_at(text: &str, separator: char) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != separator || chars.next_if_eq(&separator).is_some() {
            part.push(c);
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    parts.push(part);
    parts
}

/// The candidate that `word` is most likely a slip of: at most a third of its letters differ.
#[must_use]
pub fn closest(word: &str, candidates: &[&'static str]) -> Option<&'static str> {
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| {
            *distance <= candidate.len().max(word.len()).div_ceil(3) && *distance < candidate.len()
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, one row at a time.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_switches_and_values_in_any_order() {
        let (head, mut list) = OptionList::with_head("a=b.img,serial=x=y,ro").unwrap();
        assert_eq!(head, "a=b.img");
        assert!(list.switch("ro").unwrap());
        assert_eq!(list.value("serial").unwrap().as_deref(), Some("x=y"));
        assert_eq!(list.value("cache").unwrap(), None);
        list.finish().unwrap();
    }

    #[test]
    fn a_key_that_may_be_repeated_gives_all_its_values() {
        let mut list = OptionList::of_keys("port=1,ro,port=2=3").unwrap();
        assert_eq!(list.values("port").unwrap(), ["1", "2=3"]);
        assert_eq!(list.values("name").unwrap(), [""; 0]);
        assert!(list.switch("ro").unwrap());
        list.finish().unwrap();
        let mut list = OptionList::of_keys("port").unwrap();
        assert_eq!(
            list.values("port"),
            Err(ListError::MissingValue { key: "port" })
        );
    }

    #[test]
    fn a_doubled_comma_belongs_to_the_value() {
        for (text, head) in [("a,,b", "a,b"), (",,", ","), ("a,,,,b", "a,,b")] {
            let (read, list) = OptionList::with_head(text).unwrap();
            assert_eq!(read, head);
            list.finish().unwrap();
            assert_eq!(escape(head), text);
        }
        let (head, mut list) = OptionList::with_head("a,,,ro").unwrap();
        assert_eq!(head, "a,");
        assert!(list.switch("ro").unwrap());
    }

    #[test]
    fn empty_parts_are_refused() {
        for text in ["", ",", "a,", ",ro", "a,,,"] {
            assert_eq!(
                OptionList::with_head(text).unwrap_err(),
                ListError::EmptyPart(text.to_owned())
            );
        }
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let read = |text: &str| OptionList::of_keys(text).unwrap().switch("ro");
        assert_eq!(read("ro"), Ok(true));
        assert_eq!(read("ro=on"), Ok(true));
        assert_eq!(read("ro=off"), Ok(false));
        assert_eq!(read("rw"), Ok(false));
        let read = |text: &str| OptionList::of_keys(text).unwrap().switch_or("ro", true);
        assert_eq!(read("rw"), Ok(true));
        assert_eq!(read("ro=off"), Ok(false));
        let read = |text: &str| OptionList::of_keys(text).unwrap().switch("ro");
        assert_eq!(
            read("ro=maybe").unwrap_err().to_string(),
            "'ro=maybe' is neither on nor off; write 'ro', 'ro=on' or 'ro=off'"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_remedy() {
        let (_, mut list) = OptionList::with_head("x,seral=1").unwrap();
        list.switch("ro").unwrap();
        list.value("serial").unwrap();
        assert_eq!(
            list.finish().unwrap_err().to_string(),
            "unknown key 'seral', did you mean 'serial'?; known keys: ro, serial"
        );
        let (_, mut list) = OptionList::with_head("x,ro,ro").unwrap();
        assert_eq!(
            list.switch("ro"),
            Err(ListError::Duplicate("ro".to_owned()))
        );
        let (_, mut list) = OptionList::with_head("x,serial").unwrap();
        assert_eq!(
            list.value("serial").unwrap_err().to_string(),
            "'serial' needs a value; write serial=VALUE"
        );
    }

    #[test]
    fn only_a_near_miss_is_suggested() {
        let known = ["ro", "serial", "cache"];
        assert_eq!(closest("seriel", &known), Some("serial"));
        assert_eq!(closest("r", &known), Some("ro"));
        assert_eq!(closest("zzz", &known), None);
        assert_eq!(closest("", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
