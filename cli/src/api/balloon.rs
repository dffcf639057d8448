//! The memory balloon: `/balloon`, `/balloon/statistics`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vmm::balloon::BalloonControl;

use super::http::Reply;
use super::routes::{Call, Fault, Target};

/// How long a guest may take to answer. Everybody who asks this VM something waits that long with it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sizes in the API are in MiB.
const MIB: u64 = 1 << 20;

fn balloon(target: &Target) -> Result<&BalloonControl, Fault> {
    let absent = "this VM was started without a balloon";
    target.handle.balloon().ok_or_else(|| Fault::absent(absent))
}

/// `GET /balloon`: what it should be, and what it is.
pub fn show(target: &Target, _call: &Call<'_>) -> Result<Reply, Fault> {
    let balloon = balloon(target)?;
    let options = balloon.options();
    Ok(Reply::show(json!({
        "amount_mib": balloon.target() / MIB,
        "actual_mib": balloon.actual() / MIB,
        "deflate_on_oom": options.deflate_on_oom,
        "free_page_reporting": options.free_page_reporting,
        "stats_polling_interval_s": balloon.statistics_interval().as_secs(),
    })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    amount_mib: u32,
}

/// `PATCH /balloon`: `{"amount_mib": N}`.
pub fn resize(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let balloon = balloon(target)?;
    let Resize { amount_mib } = call.body()?;
    let result = balloon.set_target(u64::from(amount_mib) * MIB);
    result.map_err(|error| {
        Fault::bad(&format!(
            "a balloon of {amount_mib} MiB takes all of the guest's {} MiB of memory",
            error.memory / MIB
        ))
    })?;
    Ok(Reply::done())
}

/// `GET /balloon/statistics`: what the guest tells. Where it is not asked for it at intervals, it is now.
pub fn statistics(target: &Target, _call: &Call<'_>) -> Result<Reply, Fault> {
    let balloon = balloon(target)?;
    let told = match balloon.statistics_interval().is_zero() {
        true => balloon.ask_statistics(PATIENCE),
        false => balloon.statistics(),
    };
    let (target, actual) = (balloon.target(), balloon.actual());
    let sizes = [
        ("target_pages", target / 4096),
        ("actual_pages", actual / 4096),
        ("target_mib", target / MIB),
        ("actual_mib", actual / MIB),
    ];
    let figures = told.iter().flat_map(|told| told.iter());
    let all: Map<String, Value> = sizes
        .into_iter()
        .chain(figures)
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    Ok(Reply::show(all))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Interval {
    stats_polling_interval_s: u16,
}

/// `PATCH /balloon/statistics`: `{"stats_polling_interval_s": N}`; 0 asks only on request.
pub fn set_interval(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let balloon = balloon(target)?;
    let Interval {
        stats_polling_interval_s: seconds,
    } = call.body()?;
    balloon
        .set_statistics_interval(Duration::from_secs(seconds.into()))
        .map_err(|error| Fault::bad(&error.to_string()))?;
    Ok(Reply::done())
}
