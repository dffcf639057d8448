//! What is said of a row of samples.

/// Half of the samples are at most `median`, half of them are between `low` and `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The first quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub high: f64,
}

/// The quartiles; zeros where there is no sample.
pub fn spread(samples: &[f64]) -> Spread {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quartile = |quarters: usize| {
        let last = sorted.len().saturating_sub(1);
        // Between two neighbours, as R's and NumPy's default.
        let (index, rest) = (last * quarters / 4, last * quarters % 4);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        at(index) + (at((index + 1).min(last)) - at(index)) * float(rest as u64) / 4.0
    };
    Spread {
        low: quartile(1),
        median: quartile(2),
        high: quartile(3),
    }
}

/// How much more each sample is than the one taken beside it.
pub fn ratios(samples: &[f64], beside: &[f64]) -> Vec<f64> {
    let pairs = samples.iter().zip(beside);
    pairs.map(|(sample, beside)| sample / beside).collect()
}

/// How much each sample is beyond the one taken beside it.
pub fn differences(samples: &[f64], beside: &[f64]) -> Vec<f64> {
    let pairs = samples.iter().zip(beside);
    pairs.map(|(sample, beside)| sample - beside).collect()
}

/// A number as a count, without what is behind the point; nothing below zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast keeps to the range, and cuts where it says so"
)]
pub fn count(number: f64) -> u64 {
    number as u64
}

/// A count as a number to reckon with: exact up to 2^53, which no count here comes near.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts are far below two to the power of 53"
)]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples() {
        let spread = spread(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
    }

    #[test]
    fn few_samples_have_quartiles_too() {
        assert_eq!(spread(&[]).median, 0.0);
        let one = spread(&[7.0]);
        assert_eq!((one.low, one.median, one.high), (7.0, 7.0, 7.0));
    }

    #[test]
    fn ratios_are_of_pairs() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
        assert_eq!(differences(&[2.0, 9.0], &[1.0, 3.0]), [1.0, 6.0]);
    }
}
