//! The file of `mvm test`: settings, a matrix of them, and cases; read, combined, and checked.
//!
//! ```toml
//! [settings]                       # for every case, as in a --config file
//! mem = "512M"
//! expect = "login: $"
//!
//! [matrix]                         # every combination of these is a case
//! kernel = ["vmlinuz-6.1", "vmlinuz-6.12"]
//! cpus = [1, 4]
//!
//! [[case]]                         # each of these with every combination; without any, there is one
//! name = "disk"
//! rootfs = "img.ext4,ro"
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;
use toml::{Spanned, Table, Value};

use crate::config::Settings;

/// More cases than anybody waits for.
const MAX_CASES: usize = 10_000;

/// What a case cannot set, and why.
const RESERVED: [(&str, &str); 2] = [
    ("console", "each case's console goes to a file of its own"),
    ("report", "mvm test has a --report of its own"),
];

/// Why a file is no matrix.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("the test file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say what to test.
    #[error("the test file {}, line {line}: {cause}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    settings: Table,
    matrix: BTreeMap<Spanned<String>, Vec<Spanned<Value>>>,
    case: Vec<Spanned<Table>>,
}

/// The same, for the sake of the places of mistakes in the settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Checked {
    #[serde(rename = "settings")]
    _settings: Settings,
    #[serde(rename = "matrix")]
    _matrix: Option<IgnoredAny>,
    #[serde(rename = "case")]
    _case: Option<IgnoredAny>,
}

/// A case: its name, and its settings with paths that are relative to the file.
#[derive(Debug)]
pub struct CaseSettings {
    /// The name of the case, if it has one, and the matrix's values.
    pub name: String,
    /// What it sets.
    pub settings: Settings,
}

/// Reads the cases, in the order of the file.
pub fn read(path: &Path) -> Result<Vec<CaseSettings>, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut cases = parse(&text).map_err(|(at, cause)| FileError::Syntax {
        path: path.to_owned(),
        line: text.get(..at).unwrap_or_default().matches('\n').count() + 1,
        cause,
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    for case in &mut cases {
        case.settings.relative_to(base);
    }
    Ok(cases)
}

/// A mistake: where in the text, and what.
type Mistake = (usize, String);

fn parse(text: &str) -> Result<Vec<CaseSettings>, Mistake> {
    let mistake = |error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        (start, error.message().replace('\n', ", "))
    };
    let written: Written = toml::from_str(text).map_err(mistake)?;
    toml::from_str::<Checked>(text).map_err(mistake)?;
    let start = text.find("[settings]").unwrap_or_default();
    refuse_reserved(written.settings.keys(), start)?;
    let axes = axes(written.matrix, &written.settings)?;
    let bases = bases(written.case, &written.settings, &axes)?;

    let combinations = axes
        .iter()
        .try_fold(bases.len(), |count, axis| {
            count.checked_mul(axis.values.len())
        })
        .filter(|count| *count <= MAX_CASES);
    if combinations.is_none() {
        return Err((
            0,
            format!("it makes more than {MAX_CASES} cases; leave some out"),
        ));
    }
    let mut cases = Vec::new();
    for base in &bases {
        combine(base, &axes, &mut cases)?;
    }
    Ok(cases)
}

fn refuse_reserved<'a>(keys: impl Iterator<Item = &'a String>, at: usize) -> Result<(), Mistake> {
    for key in keys {
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == key) {
            return Err((at, format!("'{key}' has no place here: {why}")));
        }
    }
    Ok(())
}

/// One key of the matrix.
#[derive(Debug)]
struct Axis {
    key: String,
    values: Vec<Spanned<Value>>,
    labels: Vec<String>,
}

/// The matrix in the order it is written.
fn axes(
    matrix: BTreeMap<Spanned<String>, Vec<Spanned<Value>>>,
    settings: &Table,
) -> Result<Vec<Axis>, Mistake> {
    let mut keys: Vec<_> = matrix.into_iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    let axis = |(key, values): (Spanned<String>, Vec<Spanned<Value>>)| {
        let (at, key) = (key.span().start, key.into_inner());
        refuse_reserved(std::iter::once(&key), at)?;
        if settings.contains_key(&key) {
            let cause = format!("'{key}' is in [settings] and in [matrix]; leave one out");
            return Err((at, cause));
        }
        if values.is_empty() {
            return Err((
                at,
                format!("'{key}' has no value; give it one or leave it out"),
            ));
        }
        for value in &values {
            let one = Table::from_iter([(key.clone(), value.get_ref().clone())]);
            Settings::deserialize(one)
                .map_err(|error| (value.span().start, format!("{key}: {}", message(&error))))?;
        }
        let labels = labels(values.iter().map(Spanned::get_ref));
        Ok(Axis {
            key,
            values,
            labels,
        })
    };
    keys.into_iter().map(axis).collect()
}

/// What the values are called: a path by its last part, if that tells them apart.
fn labels<'a>(values: impl Iterator<Item = &'a Value> + Clone) -> Vec<String> {
    let whole = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(words) => {
            let words = words.iter().map(|word| match word {
                Value::String(word) => word.clone(),
                other => other.to_string(),
            });
            words.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let short: Vec<_> = values
        .clone()
        .map(|value| match value {
            Value::String(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
            other => whole(other),
        })
        .collect();
    let distinct = (1..short.len()).all(|at| !short[..at].contains(&short[at]));
    match distinct {
        true => short,
        false => values.map(whole).collect(),
    }
}

/// A case before it is combined with the matrix.
#[derive(Debug)]
struct Base {
    name: Option<String>,
    settings: Table,
    at: usize,
}

/// The cases with the settings of all; without any, one of these alone.
fn bases(
    written: Vec<Spanned<Table>>,
    settings: &Table,
    axes: &[Axis],
) -> Result<Vec<Base>, Mistake> {
    if written.is_empty() {
        return Ok(vec![Base {
            name: None,
            settings: settings.clone(),
            at: 0,
        }]);
    }
    let base = |case: Spanned<Table>| {
        let at = case.span().start;
        let mut case = case.into_inner();
        let name = match case.remove("name") {
            Some(Value::String(name)) if !name.trim().is_empty() => name,
            _ => {
                let cause = "a [[case]] needs a name, such as name = \"login\"";
                return Err((at, cause.to_owned()));
            }
        };
        let mistake = |cause: String| (at, format!("case '{name}': {cause}"));
        refuse_reserved(case.keys(), at)?;
        if let Some(axis) = axes.iter().find(|axis| case.contains_key(&axis.key)) {
            let cause = format!(
                "'{}' is in the case and in [matrix]; leave one out",
                axis.key
            );
            return Err(mistake(cause));
        }
        Settings::deserialize(case.clone()).map_err(|error| mistake(message(&error)))?;
        let mut settings = settings.clone();
        settings.extend(case);
        Ok(Base {
            name: Some(name),
            settings,
            at,
        })
    };
    written.into_iter().map(base).collect()
}

/// Every combination of a case with the matrix; the last key changes fastest.
fn combine(base: &Base, axes: &[Axis], cases: &mut Vec<CaseSettings>) -> Result<(), Mistake> {
    let count: usize = axes.iter().map(|axis| axis.values.len()).product();
    for number in 0..count {
        let mut words: Vec<String> = base.name.iter().cloned().collect();
        let mut settings = base.settings.clone();
        let mut rest = count;
        for axis in axes {
            rest /= axis.values.len();
            let at = number / rest % axis.values.len();
            words.push(format!("{}={}", axis.key, axis.labels[at]));
            settings.insert(axis.key.clone(), axis.values[at].get_ref().clone());
        }
        let name = match words.is_empty() {
            true => "boot".to_owned(),
            false => words.join(" "),
        };
        if cases.iter().any(|case| case.name == name) {
            return Err((base.at, format!("there are two cases '{name}'")));
        }
        let settings =
            Settings::deserialize(settings).map_err(|error| (base.at, message(&error)))?;
        cases.push(CaseSettings { name, settings });
    }
    Ok(())
}

fn message(error: &toml::de::Error) -> String {
    error.message().replace('\n', ", ")
}

#[cfg(test)]
mod tests;
