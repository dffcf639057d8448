//! A picture of a family: a bar for mvm and one for what it is beside, with whiskers for the quartiles, and a line where
//! the goal is.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::stats::spread;
use super::table::Case;

const WIDTH: i32 = 760;
/// Of a case: its title, and a line for each bar.
const TITLE: i32 = 30;
const BAR: i32 = 26;
const MARGIN: i32 = 20;
const LABEL: i32 = 120;
/// Behind the bars, so that no line crosses it.
const VALUE: i32 = 110;
const MVM: RGBColor = RGBColor(37, 99, 235);
const BESIDE: RGBColor = RGBColor(156, 163, 175);
const INK: RGBColor = RGBColor(31, 41, 55);
const AIM: RGBColor = RGBColor(220, 38, 38);

/// Draws the cases below each other, each to a scale of its own.
pub fn draw(path: &Path, family: &str, cases: &[Case]) -> Result<()> {
    let rows: usize = cases.iter().map(|case| bars(case).len()).sum();
    let height = 3 * MARGIN + TITLE * i32::try_from(cases.len() + 1)? + BAR * i32::try_from(rows)?;
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let area = SVGBackend::new(path, size).into_drawing_area();
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        area.fill(&WHITE)?;
        let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let mut y = MARGIN;
        area.draw_text(&format!("mvm: {family}"), &text(20), (20, y))?;
        y += TITLE + MARGIN / 2;
        for case in cases {
            let ratio = case
                .ratio()
                .map_or_else(String::new, |ratio| format!(", {:.2} times", ratio.median));
            let title = format!("{} ({}){ratio}", case.name, case.unit);
            area.draw_text(&title, &text(15), (20, y))?;
            y += TITLE - 8;
            let bars = bars(case);
            let aim = case.aim();
            let most = bars
                .iter()
                .map(|(_, _, spread)| spread.high)
                .chain(aim)
                .fold(f64::MIN_POSITIVE, f64::max);
            let scale = f64::from(WIDTH - LABEL - VALUE);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most the picture's width"
            )]
            let x = |value: f64| LABEL + (value / most * scale) as i32;
            let top = y;
            for (name, colour, spread) in bars {
                area.draw_text(name, &text(13), (20, y + 4))?;
                let bar = [(LABEL, y), (x(spread.median), y + 18)];
                area.draw(&Rectangle::new(bar, colour.filled()))?;
                let whisker = vec![(x(spread.low), y + 9), (x(spread.high), y + 9)];
                area.draw(&PathElement::new(whisker, INK.stroke_width(2)))?;
                let value = format!("{:.2}", spread.median);
                area.draw_text(&value, &text(13), (WIDTH - VALUE + 12, y + 4))?;
                y += BAR;
            }
            if let Some(aim) = aim {
                let line = vec![(x(aim), top - 3), (x(aim), top + 21)];
                area.draw(&PathElement::new(line, AIM.stroke_width(2)))?;
            }
            y += 8;
        }
        area.present()?;
        Ok(())
    };
    drawn()
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| path.display().to_string())
}

fn bars(case: &Case) -> Vec<(&'static str, RGBColor, super::stats::Spread)> {
    let mut bars = vec![("mvm", MVM, spread(&case.mvm))];
    if let Some((name, samples)) = &case.beside {
        bars.push((name, BESIDE, spread(samples)));
    }
    bars
}
