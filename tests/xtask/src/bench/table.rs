//! Results: as a table for people, and as JSON for what compares runs.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::stats::{Spread, differences, ratios, spread};
use super::weight::Weight;

/// One thing that was measured.
#[derive(Debug)]
pub struct Case {
    /// What it is.
    pub name: String,
    /// What the numbers are.
    pub unit: &'static str,
    /// mvm's samples.
    pub mvm: Vec<f64>,
    /// What mvm is measured against: its name, and the samples taken in turns with mvm's.
    pub beside: Option<(&'static str, Vec<f64>)>,
    /// What should be reached.
    pub goal: Option<Goal>,
}

/// What should be reached.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most so many times what is beside.
    Ratio(f64),
    /// At least so many times what is beside, where more is better.
    Share(f64),
    /// At most so many of the unit more than what is beside.
    Added(f64),
    /// At most so many of the unit.
    Most(f64),
}

impl Case {
    /// The median of the ratios of pairs.
    pub fn ratio(&self) -> Option<Spread> {
        let (_, beside) = self.beside.as_ref()?;
        Some(spread(&ratios(&self.mvm, beside)))
    }

    /// Whether the goal is reached, where there is one.
    fn reached(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::Ratio(most) => self.ratio()?.median <= most,
            Goal::Share(least) => self.ratio()?.median >= least,
            Goal::Added(most) => {
                let (_, beside) = self.beside.as_ref()?;
                spread(&differences(&self.mvm, beside)).median <= most
            }
            Goal::Most(most) => spread(&self.mvm).median <= most,
        })
    }

    /// Where the goal is on mvm's scale, reckoned from the median of what is beside.
    pub fn aim(&self) -> Option<f64> {
        let beside = self.beside.as_ref();
        let beside = beside.map(|(_, samples)| spread(samples).median);
        Some(match self.goal? {
            Goal::Ratio(times) | Goal::Share(times) => times * beside?,
            Goal::Added(most) => beside? + most,
            Goal::Most(most) => most,
        })
    }
}

/// A table of a family.
pub fn text(family: &str, cases: &[Case]) -> String {
    let title = |case: &Case| format!("{}, {}", case.name, case.unit);
    let width = cases.iter().map(|case| title(case).len()).max();
    let width = width.unwrap_or_default().max(26);
    let mut text = format!(
        "{family:<0$} {1:>26} {2:>34} {3:>20}  goal\n",
        width + 2,
        "mvm (quartiles)",
        "beside",
        "ratio"
    );
    for case in cases {
        let of = |samples: &[f64]| {
            let Spread { low, median, high } = spread(samples);
            format!("{median:.2} ({low:.2}-{high:.2})")
        };
        let beside = case
            .beside
            .as_ref()
            .map_or_else(String::new, |(name, samples)| {
                format!("{name} {}", of(samples))
            });
        let ratio = case.ratio().map_or_else(String::new, |ratio| {
            format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.low, ratio.high)
        });
        let goal = match (case.goal, case.reached()) {
            (Some(Goal::Ratio(most)), Some(reached)) => format!("<= {most:.2}: {}", word(reached)),
            (Some(Goal::Share(least)), Some(reached)) => {
                format!(">= {least:.2}: {}", word(reached))
            }
            (Some(Goal::Added(most)), Some(reached)) => {
                format!("<= {most} {} more: {}", case.unit, word(reached))
            }
            (Some(Goal::Most(most)), Some(reached)) => {
                format!("<= {most} {}: {}", case.unit, word(reached))
            }
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "  {:<width$} {:>26} {beside:>34} {ratio:>20}  {goal}",
            title(case),
            of(&case.mvm),
        );
    }
    text
}

fn word(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

/// All of it, with every sample, and what the binary weighs.
pub fn json(families: &[(String, Vec<Case>)], weight: Weight) -> Result<String> {
    let cases: Vec<_> = families
        .iter()
        .flat_map(|(family, cases)| cases.iter().map(move |case| (family, case)))
        .map(|(family, case)| {
            let beside = case.beside.as_ref().map(|(name, samples)| {
                json!({ "name": name, "samples": samples, "median": spread(samples).median })
            });
            json!({
                "family": family,
                "case": case.name,
                "unit": case.unit,
                "mvm": { "samples": case.mvm, "median": spread(&case.mvm).median },
                "beside": beside,
                "ratio": case.ratio().map(|ratio| ratio.median),
                "reached": case.reached(),
            })
        })
        .collect();
    let binary = json!({ "bytes": weight.bytes, "crates": weight.crates });
    Ok(serde_json::to_string_pretty(&json!({ "cases": cases, "binary": binary }))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(goal: Goal) -> Case {
        Case {
            name: "a".into(),
            unit: "ms",
            mvm: vec![2.0, 3.0, 4.0],
            beside: Some(("floor", vec![2.0, 2.0, 2.0])),
            goal: Some(goal),
        }
    }

    #[test]
    fn goals_are_of_medians() {
        assert_eq!(case(Goal::Ratio(1.5)).reached(), Some(true));
        assert_eq!(case(Goal::Ratio(1.4)).reached(), Some(false));
        assert_eq!(case(Goal::Most(3.0)).reached(), Some(true));
        assert_eq!(case(Goal::Most(2.9)).reached(), Some(false));
        assert_eq!(case(Goal::Share(1.5)).reached(), Some(true));
        assert_eq!(case(Goal::Share(1.6)).reached(), Some(false));
        assert_eq!(case(Goal::Added(1.0)).reached(), Some(true));
        assert_eq!(case(Goal::Added(0.9)).reached(), Some(false));
    }

    #[test]
    fn an_aim_is_on_the_scale_of_the_samples() {
        assert_eq!(case(Goal::Ratio(1.5)).aim(), Some(3.0));
        assert_eq!(case(Goal::Share(0.5)).aim(), Some(1.0));
        assert_eq!(case(Goal::Added(0.5)).aim(), Some(2.5));
        assert_eq!(case(Goal::Most(7.0)).aim(), Some(7.0));
    }

    #[test]
    fn a_line_says_it_all() {
        let text = text("start", &[case(Goal::Ratio(1.0))]);
        let line = text.lines().nth(1).unwrap_or_default();
        for part in [
            "a, ms",
            "3.00 (2.50-3.50)",
            "floor 2.00 (2.00-2.00)",
            "1.50 (1.25-1.75)",
            "<= 1.00: missed",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn every_sample_is_in_the_json() {
        let weight = Weight {
            bytes: 5,
            crates: 2,
        };
        let json = json(&[("start".into(), vec![case(Goal::Ratio(1.0))])], weight).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["cases"][0]["mvm"]["samples"][2], 4.0);
        assert_eq!(value["cases"][0]["ratio"], 1.5);
        assert_eq!(value["cases"][0]["reached"], false);
        assert_eq!(value["binary"]["bytes"], 5);
        assert_eq!(value["binary"]["crates"], 2);
    }
}
