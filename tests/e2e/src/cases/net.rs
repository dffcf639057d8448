//! Network cards on taps: real drivers and the host's own network at the other end.

use anyhow::Result;

use super::tests;
use crate::context::{Context, Kernel};
use crate::lan;
use crate::vm::Mvm;

tests! { "net":
    LONG stock_ping,
    SHORT ping,
}

/// A guest that does something over a card on the tap `t0`.
fn guest<'a>(context: &'a Context, kernel: Kernel, what: &str, keys: &str) -> Result<Mvm<'a>> {
    let rootfs = context.rootfs()?;
    let mvm = context.script(kernel, &rootfs, &format!("net,{what}"))?;
    Ok(mvm.arg("--net").arg(format!("tap=t0{keys}")))
}

fn ping_with(context: &Context, kernel: Kernel) -> Result<()> {
    lan::alone(|| {
        let mut vm = guest(context, kernel, "ping", "")?.spawn()?;
        // The tap is there before the guest runs.
        vm.wait_for("Linux version")?;
        lan::give_addresses("t0")?;
        let outcome = vm.exits_with(0)?;
        outcome.says("10.0.0.1 ping statistics")?;
        outcome.says("fd00::1 ping statistics")?;
        outcome.says("3 packets received, 0% packet loss")?;
        outcome.does_not_say("100% packet loss")
    })
}

fn ping(context: &Context) -> Result<()> {
    ping_with(context, Kernel::TinyElf)
}

fn stock_ping(context: &Context) -> Result<()> {
    ping_with(context, Kernel::StockBzimage)
}
