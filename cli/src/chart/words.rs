//! The words in the picture: how they are set, and how times are written.

use std::time::Duration;

use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, TextStyle};

const INK: RGBColor = RGBColor(31, 41, 55);

/// How words are set: left-aligned, in the middle of their line, in ink.
#[derive(Clone, Copy)]
pub struct Style {
    size: i32,
    family: FontFamily<'static>,
    weight: FontStyle,
    colour: RGBColor,
    anchor: HPos,
}

/// Words of this size.
pub fn text(size: i32) -> Style {
    Style {
        size,
        family: FontFamily::SansSerif,
        weight: FontStyle::Normal,
        colour: INK,
        anchor: HPos::Left,
    }
}

impl Style {
    /// Heavier.
    pub fn bold(self) -> Self {
        let weight = FontStyle::Bold;
        Self { weight, ..self }
    }

    /// As a terminal sets them.
    pub fn mono(self) -> Self {
        let family = FontFamily::Monospace;
        Self { family, ..self }
    }

    /// In another colour.
    pub fn colour(self, colour: RGBColor) -> Self {
        Self { colour, ..self }
    }

    /// Ending at their place.
    pub fn right(self) -> Self {
        let anchor = HPos::Right;
        Self { anchor, ..self }
    }

    /// Around their place.
    pub fn centre(self) -> Self {
        let anchor = HPos::Center;
        Self { anchor, ..self }
    }

    /// As plotters has it.
    pub fn plotters(self) -> TextStyle<'static> {
        TextStyle {
            font: FontDesc::new(self.family, f64::from(self.size), self.weight),
            color: self.colour.to_backend_color(),
            pos: Pos::new(self.anchor, VPos::Center),
        }
    }
}

/// A time in three digits or so.
pub fn shown(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        ..100_000.0 => format!("{:.2} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// A round time that fits into another at most ten times: 1, 2 or 5 of a power of ten.
pub fn step(whole: Duration) -> Duration {
    let mut unit = Duration::from_micros(1);
    loop {
        for step in [unit, unit * 2, unit * 5] {
            if step * 10 >= whole {
                return step;
            }
        }
        unit *= 10;
    }
}

/// A time on an axis of such steps.
pub fn tick(at: Duration, step: Duration) -> String {
    let seconds = at.as_secs_f64();
    if step < Duration::from_millis(1) {
        format!("{:.1} ms", seconds * 1e3)
    } else if step < Duration::from_millis(100) {
        format!("{:.0} ms", seconds * 1e3)
    } else if step < Duration::from_secs(1) {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    }
}

/// As much of a text as there is room for.
pub fn short(text: &str, room: usize) -> String {
    match text.char_indices().nth(room) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (micros, said) in [
            (0, "0.0 ms"),
            (1_234, "1.2 ms"),
            (12_345, "12 ms"),
            (1_234_567, "1.23 s"),
            (123_456_789, "123 s"),
        ] {
            assert_eq!(shown(Duration::from_micros(micros)), said);
        }
    }

    #[test]
    fn steps_are_round_and_few() {
        for (micros, expected, label) in [
            (1, 1, "0.0 ms"),
            (900, 100, "0.1 ms"),
            (12_000, 2_000, "2 ms"),
            (450_000, 50_000, "50 ms"),
            (1_500_000, 200_000, "0.2 s"),
            (16_000_000, 2_000_000, "2 s"),
            (600_000_000, 100_000_000, "100 s"),
        ] {
            let step = step(Duration::from_micros(micros));
            assert_eq!(step, Duration::from_micros(expected), "{micros}");
            assert_eq!(tick(step, step), label);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(short("größe", 5), "größe");
        assert_eq!(short("größe", 3), "grö…");
    }
}
