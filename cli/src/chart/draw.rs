//! The picture: a waterfall of stages over one axis, the kernel's log as ticks below it, and its longest
//! silences in words.

use std::time::Duration;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::{Color, RGBColor};

use crate::report::junit;

use super::rows::{Boot, Group, Row, Silence};
use super::words::{Style, short, shown, step, text, tick};

type Error = DrawingAreaErrorKind<std::io::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 1200;
const MARGIN: i32 = 28;
/// Where time is drawn: beside the stages' names, and with room for the last one's duration.
const LEFT: i32 = 290;
const RIGHT: i32 = 1090;

const HEADER: i32 = 92;
const ROW: i32 = 30;
const BAR: i32 = 20;
const STRIP: i32 = 34;
const AXIS: i32 = 34;
const SILENCE: i32 = 24;
/// The width of a number in a circle, with its margin.
const BADGE: i32 = 20;

const PALE: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
const BACK: RGBColor = RGBColor(249, 250, 251);
const RED: RGBColor = RGBColor(220, 38, 38);
const WHITE: RGBColor = RGBColor(255, 255, 255);

/// The colour of a group's bars, and of those that go on beside others.
fn colours(group: Group) -> (RGBColor, RGBColor) {
    match group {
        Group::Mvm => (RGBColor(13, 148, 136), RGBColor(94, 234, 212)),
        Group::Kernel => (RGBColor(37, 99, 235), RGBColor(147, 197, 253)),
        Group::Guest => (RGBColor(217, 119, 6), RGBColor(252, 211, 77)),
    }
}

fn group_name(group: Group) -> &'static str {
    match group {
        Group::Mvm => "mvm",
        Group::Kernel => "kernel",
        Group::Guest => "guest",
    }
}

/// What stands above the picture.
#[derive(Debug)]
pub struct Title {
    /// What was booted.
    pub what: String,
    /// On what, and how it ended.
    pub how: String,
}

/// The picture as SVG.
pub fn draw(title: &Title, boot: &Boot) -> Result<String, Error> {
    let page = Page::of(boot);
    let mut svg = String::new();
    {
        let size = (WIDTH.unsigned_abs(), page.height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        page.header(&area, title, boot)?;
        page.grid(&area)?;
        page.silences_behind(&area, &boot.silences)?;
        for (number, row) in boot.rows.iter().enumerate() {
            page.row(&area, number, row, boot)?;
        }
        page.strip(&area, boot)?;
        page.silences(&area, &boot.silences)?;
        area.present()?;
    }
    Ok(svg)
}

/// Where everything is.
struct Page {
    end: Duration,
    /// The lower end of the rows.
    rows: i32,
    /// The lower end of the log's ticks, where the axis is.
    axis: i32,
    height: i32,
}

impl Page {
    fn of(boot: &Boot) -> Self {
        let count = |items: usize| i32::try_from(items).unwrap_or(i32::MAX / 1000);
        let rows = HEADER + ROW * count(boot.rows.len()) + 6;
        let axis = match boot.lines.is_empty() {
            true => rows,
            false => rows + STRIP,
        };
        let list = match boot.silences.is_empty() {
            true => 0,
            false => SILENCE * (count(boot.silences.len()) + 1) + 12,
        };
        Self {
            end: boot.end.max(Duration::from_micros(1)),
            rows,
            axis,
            height: axis + AXIS + list + MARGIN / 2,
        }
    }

    /// Where a time is on the axis.
    fn x(&self, at: Duration) -> i32 {
        let width = (RIGHT - LEFT).unsigned_abs();
        let x = at.as_micros() * u128::from(width) / self.end.as_micros().max(1);
        LEFT + i32::try_from(x).unwrap_or(RIGHT).min(RIGHT - LEFT)
    }

    fn header(&self, area: &Area<'_>, title: &Title, boot: &Boot) -> Result<(), Error> {
        write(area, &title.what, (MARGIN, 34), &text(30).bold())?;
        write(area, &title.how, (MARGIN, 62), &text(16).colour(PALE))?;
        let took = match boot.init {
            Some(init) => format!("{} to init, {} in all", shown(init), shown(boot.end)),
            None => format!("{} in all", shown(boot.end)),
        };
        write(area, &took, (WIDTH - MARGIN, 34), &text(22).bold().right())?;
        if boot.rows.iter().any(|row| row.beside) {
            let style = text(15).colour(PALE).right();
            let legend = "paler bars: while the others went on";
            write(area, legend, (WIDTH - MARGIN, 62), &style)?;
        }
        Ok(())
    }

    fn grid(&self, area: &Area<'_>) -> Result<(), Error> {
        let top = HEADER - 8;
        fill(area, (LEFT, top), (RIGHT, self.axis), BACK, 1.0)?;
        let step = step(self.end);
        for number in 0..100 {
            let at = step * number;
            if at > self.end {
                break;
            }
            let x = self.x(at);
            fill(area, (x, top), (x + 1, self.axis), GRID, 1.0)?;
            let style = text(15).colour(PALE).centre();
            write(area, &tick(at, step), (x, self.axis + 16), &style)?;
        }
        Ok(())
    }

    fn row(&self, area: &Area<'_>, number: usize, row: &Row, boot: &Boot) -> Result<(), Error> {
        let number = i32::try_from(number).unwrap_or(i32::MAX / 1000);
        let middle = HEADER + ROW * number + ROW / 2;
        let (strong, soft) = colours(row.group);
        let is_first = boot
            .rows
            .iter()
            .find(|other| other.group == row.group)
            .is_some_and(|first| first == row);
        if is_first {
            let style = text(17).bold().colour(strong);
            write(area, group_name(row.group), (MARGIN, middle), &style)?;
        }
        write(area, row.name, (LEFT - 14, middle), &text(16).right())?;
        let (from, to) = (self.x(row.from), self.x(row.to));
        let to = to.max(from + 2);
        let (upper, lower) = (middle - BAR / 2, middle + BAR / 2);
        let colour = if row.beside { soft } else { strong };
        fill(area, (from, upper), (to, lower), colour, 1.0)?;
        let took = shown(row.to.saturating_sub(row.from));
        write(area, &took, (to + 8, middle), &text(15))
    }

    /// The kernel's lines, a tick each.
    fn strip(&self, area: &Area<'_>, boot: &Boot) -> Result<(), Error> {
        if boot.lines.is_empty() {
            return Ok(());
        }
        let (upper, lower) = (self.rows + 4, self.axis - 6);
        let middle = i32::midpoint(upper, lower);
        let style = text(16).right().colour(PALE);
        let name = format!("the kernel's log, {} lines", boot.lines.len());
        write(area, &name, (LEFT - 14, middle), &style)?;
        let (strong, _) = colours(Group::Kernel);
        for at in &boot.lines {
            let x = self.x(*at);
            fill(area, (x, upper), (x + 1, lower), strong, 0.55)?;
        }
        Ok(())
    }

    /// The silences as shades over all rows.
    fn silences_behind(&self, area: &Area<'_>, silences: &[Silence]) -> Result<(), Error> {
        for silence in silences {
            let (from, to) = (self.x(silence.from), self.x(silence.to));
            fill(area, (from, HEADER - 8), (to, self.axis), RED, 0.07)?;
        }
        Ok(())
    }

    /// The silences in words, and their numbers on the picture.
    fn silences(&self, area: &Area<'_>, silences: &[Silence]) -> Result<(), Error> {
        if silences.is_empty() {
            return Ok(());
        }
        let top = self.axis + AXIS + 14;
        let title = "The kernel's longest silences, and what it had said before each";
        write(area, title, (MARGIN, top), &text(17).bold())?;
        let mut marked: Vec<i32> = Vec::new();
        for (number, silence) in (1..).zip(silences) {
            let y = top + SILENCE * number + 4;
            badge(area, number, (MARGIN + 10, y))?;
            let took = shown(silence.to - silence.from);
            write(area, &took, (MARGIN + 110, y), &text(16).bold().right())?;
            let at = format!("at {}", shown(silence.from));
            write(area, &at, (MARGIN + 126, y), &text(15).colour(PALE))?;
            let after = short(&silence.after, 105);
            write(area, &after, (LEFT - 40, y), &text(15).mono())?;
            let middle = self.x((silence.from + silence.to) / 2);
            // Where there is room for it, or beside that: the longer ones come first.
            let is_free = |x: &i32| marked.iter().all(|other| (other - x).abs() >= BADGE);
            let places = (0..=BADGE).flat_map(|aside| [middle + aside, middle - aside]);
            if let Some(x) = places.into_iter().find(is_free) {
                badge(area, number, (x, HEADER - 14))?;
                marked.push(x);
            }
        }
        Ok(())
    }
}

/// A number in a circle.
fn badge(area: &Area<'_>, number: i32, at: (i32, i32)) -> Result<(), Error> {
    area.draw(&Circle::new(at, 9, RED.filled()))?;
    let style = text(14).bold().centre().colour(WHITE);
    write(area, &number.to_string(), at, &style)
}

/// A filled rectangle.
fn fill(
    area: &Area<'_>,
    from: (i32, i32),
    to: (i32, i32),
    colour: RGBColor,
    alpha: f64,
) -> Result<(), Error> {
    area.draw(&Rectangle::new([from, to], colour.mix(alpha).filled()))
}

fn write(area: &Area<'_>, words: &str, at: (i32, i32), style: &Style) -> Result<(), Error> {
    // XML has not all characters; the kernel's log may have any.
    let words = junit::clean(words);
    area.draw(&Text::new(words, at, style.plotters()))
}
