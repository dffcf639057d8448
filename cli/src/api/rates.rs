//! The limits of devices: `/network-interfaces/N`, `/entropy`, and of a drive with the rest of it.
//!
//! The resources are Firecracker's, the limits are in the words of the command line:
//! `{"rate_limiter": {"bps": "100M", "iops": 1000, "burst": "10M"}}`, where each of them may be left out.

use serde::Deserialize;
use serde_json::json;
use vmm::config::RateLimit;
use vmm::rate::RateControl;

use super::http::Reply;
use super::routes::{Call, Fault, Target};

/// The limits of the device that a request is about.
type Find = fn(&Target, &Call<'_>) -> Result<RateControl, Fault>;

fn card(target: &Target, call: &Call<'_>) -> Result<RateControl, Fault> {
    numbered("network interface", target.handle.net_rates(), call)
}

fn entropy(target: &Target, _call: &Call<'_>) -> Result<RateControl, Fault> {
    let absent = || Fault::absent("this VM was started without a source of entropy");
    target.handle.rng_rate().cloned().ok_or_else(absent)
}

/// One of several devices, by its place among the settings.
pub fn numbered<T: Clone>(what: &str, all: &[T], call: &Call<'_>) -> Result<T, Fault> {
    let id = call.id.unwrap_or_default();
    let found = id.parse::<usize>().ok().and_then(|at| all.get(at));
    found.cloned().ok_or_else(|| {
        let last = all.len().checked_sub(1);
        let there_are = last.map_or_else(|| "none".to_owned(), |last| format!("0 to {last}"));
        Fault::absent(&format!("there is no {what} {id}; there are {there_are}"))
    })
}

fn show(find: Find, target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let limit = RateLimit::from(find(target, call)?.get());
    Ok(Reply::show(json!({ "rate_limiter": limit })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    rate_limiter: RateLimit,
}

fn change(find: Find, target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let rate = find(target, call)?;
    let Patch { rate_limiter } = call.body()?;
    set(&rate, rate_limiter)?;
    Ok(Reply::done())
}

/// Limits a device anew.
pub fn set(rate: &RateControl, limit: RateLimit) -> Result<(), Fault> {
    let limits = limit.limits();
    rate.set(limits.map_err(|error| Fault::bad(&error.to_string()))?);
    Ok(())
}

/// `GET /network-interfaces/N`.
pub fn show_card(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    show(card, target, call)
}

/// `PATCH /network-interfaces/N`: of what it receives, and the same of what it sends.
pub fn change_card(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    change(card, target, call)
}

/// `GET /entropy`.
pub fn show_entropy(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    show(entropy, target, call)
}

/// `PATCH /entropy`.
pub fn change_entropy(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    change(entropy, target, call)
}
