//! The disks: `/drives/N`, the first being the root file system where there is one.
//!
//! What Firecracker has is as there: `{"path_on_host": …}` puts another image in the place of the first. The
//! rest is in the words of the command line.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vmm::config::{MemorySize, RateLimit};
use vmm::disk::{DiskHandle, DiskState, Operation, OperationStatistics};

use super::http::Reply;
use super::rates::{self, numbered};
use super::routes::{Call, Fault, Target};

fn drive(target: &Target, call: &Call<'_>) -> Result<DiskHandle, Fault> {
    numbered("drive", target.handle.disks(), call)
}

/// `GET /drives/N`.
pub fn show(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let disk = drive(target, call)?;
    let rate = numbered("drive", target.handle.disk_rates(), call)?;
    let (state, trouble) = match disk.state() {
        DiskState::Running => ("Running", None),
        DiskState::Paused => ("Paused", None),
        DiskState::Stopped(trouble) => ("Stopped", Some(trouble)),
    };
    Ok(Reply::show(json!({
        "drive_id": disk.id(),
        "is_read_only": disk.is_read_only(),
        "size_bytes": disk.capacity(),
        "state": state,
        "trouble": trouble,
        "rate_limiter": RateLimit::from(rate.get()),
    })))
}

/// One thing at a time, so that none is done when another cannot be.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Patch {
    /// Firecracker's clients repeat it.
    drive_id: Option<String>,
    path_on_host: Option<PathBuf>,
    size: Option<Size>,
    state: Option<State>,
    rate_limiter: Option<RateLimit>,
}

#[derive(Debug, Deserialize)]
enum State {
    Paused,
    Resumed,
}

/// `"2G"`, or `"image"` for the size that the image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(Option<MemorySize>);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        if value == "image" {
            return Ok(Self(None));
        }
        let size = serde_json::from_value(value).map_err(serde::de::Error::custom)?;
        Ok(Self(Some(size)))
    }
}

/// `PATCH /drives/N`.
pub fn change(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let disk = drive(target, call)?;
    let bad = |error: &dyn std::error::Error| Fault::bad(&error.to_string());
    match call.body::<Patch>()? {
        Patch {
            path_on_host: Some(path),
            size: None,
            state: None,
            rate_limiter: None,
            ..
        } => disk.swap(&path).map_err(|error| bad(&error))?,
        Patch {
            path_on_host: None,
            size: Some(Size(size)),
            state: None,
            rate_limiter: None,
            ..
        } => {
            let bytes = size.map(MemorySize::as_bytes);
            disk.resize(bytes).map_err(|error| bad(&error))?;
        }
        Patch {
            path_on_host: None,
            size: None,
            state: Some(state),
            rate_limiter: None,
            ..
        } => match state {
            State::Paused => disk.pause().map_err(|error| bad(&error))?,
            State::Resumed => disk.resume(),
        },
        Patch {
            path_on_host: None,
            size: None,
            state: None,
            rate_limiter: Some(limit),
            ..
        } => rates::set(&numbered("drive", target.handle.disk_rates(), call)?, limit)?,
        _ => {
            return Err(Fault::bad(
                "a drive has its path_on_host, size, state or rate_limiter changed, one at a time",
            ));
        }
    }
    Ok(Reply::done())
}

/// `PUT /drives/N/flush`: what the guest was told is written is on stable storage when the answer comes.
pub fn flush(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let disk = drive(target, call)?;
    disk.flush()
        .map_err(|error| Fault::failed(&format!("the disk cannot be flushed: {error}")))?;
    Ok(Reply::done())
}

/// `GET /drives/N/statistics`.
pub fn statistics(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    let all = drive(target, call)?.statistics();
    let shown: Map<String, Value> = Operation::ALL
        .into_iter()
        .map(|operation| (operation.name().to_owned(), shown(all.of(operation))))
        .collect();
    Ok(Reply::show(shown))
}

fn shown(of: &OperationStatistics) -> Value {
    let below = |hundredths| of.percentile(hundredths).map(|it| it.as_micros());
    // Each bucket that is not empty: what its latencies are below, and how many they are.
    let latencies: Vec<(Option<u128>, u64)> = (0..)
        .zip(of.latencies)
        .filter(|(_, count)| *count > 0)
        .map(|(at, count)| {
            (
                OperationStatistics::limit(at).map(|it| it.as_micros()),
                count,
            )
        })
        .collect();
    json!({
        "requests": of.requests,
        "bytes": of.bytes,
        "errors": of.errors,
        "total_us": of.time.as_micros(),
        "p50_below_us": below(50),
        "p99_below_us": below(99),
        "latencies_below_us": latencies,
    })
}
