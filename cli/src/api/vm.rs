//! The VM as a whole: `/`, `/vm`, `/vm/config`, `/actions`.

use serde::Deserialize;
use serde_json::json;
use vmm::VmState;

use super::http::Reply;
use super::routes::{Call, Fault, Target};

/// `GET /`: that it is there.
pub fn info(target: &Target, _call: &Call<'_>) -> Result<Reply, Fault> {
    let state = match target.handle.state() {
        VmState::Ready => "Not started",
        VmState::Running => "Running",
        VmState::Paused => "Paused",
        VmState::Over => "Ended",
    };
    Ok(Reply::show(json!({
        "id": format!("mvm-{}", std::process::id()),
        "state": state,
        "trouble": target.handle.trouble(),
        "app_name": "mvm",
        "vmm_version": env!("CARGO_PKG_VERSION"),
    })))
}

/// `GET /vm/config`: what it was made of, in the words of the command line.
pub fn config(target: &Target, _call: &Call<'_>) -> Result<Reply, Fault> {
    Ok(Reply::show(&target.config))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    state: Wanted,
}

#[derive(Debug, Deserialize)]
enum Wanted {
    Paused,
    Resumed,
}

/// `PATCH /vm`: `{"state": "Paused"}` or `{"state": "Resumed"}`. It is so when the answer comes.
pub fn change(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    match call.body::<Change>()?.state {
        Wanted::Paused => target
            .handle
            .pause()
            .map_err(|error| Fault::bad(&error.to_string()))?,
        Wanted::Resumed => target.handle.resume(),
    }
    Ok(Reply::done())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Debug, Deserialize)]
enum ActionType {
    /// Firecracker's name for asking the guest to shut down.
    SendCtrlAltDel,
    PowerButton,
    InstanceHalt,
}

/// `PUT /actions`: `{"action_type": …}`.
pub fn act(target: &Target, call: &Call<'_>) -> Result<Reply, Fault> {
    match call.body::<Action>()?.action_type {
        ActionType::SendCtrlAltDel | ActionType::PowerButton => {
            if !target.config.acpi {
                return Err(Fault::bad("a VM without ACPI has no power button"));
            }
            target.handle.press_power_button();
        }
        ActionType::InstanceHalt => target.handle.stop(),
    }
    Ok(Reply::done())
}
