//! User-mode networking: all of it as an ordinary user without capabilities, whom nothing was set up for.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, Signal, kill_process};

use super::refusals::refused;
use super::tests;
use crate::context::{Context, Kernel};
use crate::lan;
use crate::servers::{self, Sink, Web};
use crate::vm::{Mvm, Vm};

tests! { "user_net":
    LONG stock_guest_fetches_20_mb_and_resolves_a_name,
    LONG guest_fetches_20_mb_and_resolves_a_name,
    LONG eight_streams_at_once,
    SHORT a_command_has_the_network,
    SHORT published_ports,
    SHORT loopback_is_out_of_reach,
    SHORT loopback_where_it_is_asked_for,
    SHORT killed_mvm_leaves_no_helper,
    SHORT killed_mvm_leaves_no_stopped_helper,
    SHORT killed_helper_takes_the_link_along,
    SHORT two_cards,
    SHORT a_host_without_a_way_out,
    SHORT ipv6,
    SHORT refusals,
}

const MIB: usize = 1 << 20;

/// A guest with a network like this, run by an ordinary user.
fn script<'a>(context: &'a Context, kernel: Kernel, net: &str, script: &str) -> Result<Mvm<'a>> {
    let rootfs = context.rootfs()?;
    let mvm = context.script(kernel, &rootfs, script)?;
    mvm.arg("--net").arg(net).ordinary(context)
}

/// Fetches 20 MB from a server outside the guest and resolves a name there.
fn fetch_and_resolve(context: &Context, kernel: Kernel, append: &str, by: &str) -> Result<()> {
    let outside = servers::outside()?;
    let web = Web::serve(outside, servers::noise(20 * MIB))?;
    let somewhere = Ipv4Addr::new(198, 51, 100, 7);
    servers::play_name_server()?;
    let fetch = format!("net-fetch,{},{}", web.url(), servers::name_of(somewhere));
    let outcome = script(context, kernel, "user", &fetch)?
        .append(append)
        .exits_with(0)?;
    outcome.says(&format!("configured by: {by}"))?;
    ensure!(
        outcome.value("address")? == "10.0.2.15/24",
        "another address"
    );
    ensure!(
        outcome.value("sum")? == web.sum,
        "it fetched something else"
    );
    ensure!(
        outcome.value("name")? == somewhere.to_string(),
        "the name is somewhere else"
    );
    ensure!(outcome.stderr.is_empty(), "mvm said: {}", outcome.stderr);
    Ok(())
}

fn guest_fetches_20_mb_and_resolves_a_name(context: &Context) -> Result<()> {
    fetch_and_resolve(context, Kernel::TinyElf, "ip=dhcp", "the kernel")
}

fn stock_guest_fetches_20_mb_and_resolves_a_name(context: &Context) -> Result<()> {
    fetch_and_resolve(context, Kernel::StockBzimage, "", "udhcpc")
}

/// The address is one that the guest's init asked for; nobody told the kernel to.
fn a_command_has_the_network(context: &Context) -> Result<()> {
    let web = Web::serve(servers::outside()?, servers::noise(MIB))?;
    let rootfs = context.rootfs()?;
    let script = format!(
        "ip -4 addr show dev eth0 | grep -o 'inet [0-9./]*'; wget -q -O - {} | sha256sum; exit 7",
        web.url()
    );
    let mvm = context.boot(Kernel::TinyElf)?.arg("--rootfs").arg(rootfs);
    let outcome = mvm
        .args("--net user")
        .shell(&script)
        .ordinary(context)?
        .exits_with(7)?;
    let expected = format!("inet 10.0.2.15/24\n{}  -\n", web.sum);
    ensure!(outcome.stdout == expected, "{}", outcome.stdout);
    ensure!(outcome.stderr.is_empty(), "mvm said: {}", outcome.stderr);
    Ok(())
}

/// Each way by itself, and then both ways at once.
fn eight_streams_at_once(context: &Context) -> Result<()> {
    const COUNT: usize = 8;
    let outside = servers::outside()?;
    let noise = servers::noise(2 * MIB);
    let web = Web::serve(outside, noise.clone())?;
    let sink = Sink::listen(outside)?;
    let to = SocketAddr::from((outside, servers::free_port()?));
    let what = format!("net-many,{COUNT},{},{outside},{}", web.url(), sink.port()?);
    let card = format!("user,publish={}:7", to.port());
    let mut vm = script(context, Kernel::TinyElf, &card, &what)?
        .append("ip=dhcp")
        .spawn()?;
    let taking = thread::spawn(move || sink.take(COUNT));
    vm.wait_for("configured")?;
    let start = Instant::now();
    vm.wait_for("received")?;
    let received = start.elapsed();
    vm.wait_for("echo: ready on 7")?;
    let sent = start.elapsed() - received;
    let sums = taking.join().map_err(|_| anyhow!("the sink panicked"))??;
    ensure!(
        sums.iter().all(|sum| *sum == web.sum),
        "something else was sent"
    );
    let start = Instant::now();
    let limit = Duration::from_secs(60);
    thread::scope(|scope| {
        let echoes =
            [(); COUNT].map(|()| scope.spawn(|| servers::echo_over_tcp(to, &noise, limit)));
        for echo in echoes {
            let back = echo.join().map_err(|_| anyhow!("a client panicked"))??;
            ensure!(back == noise, "something else came back");
        }
        Ok(())
    })?;
    let echoed = start.elapsed();
    vm.type_in("enough\n")?;
    let outcome = vm.exits_with(0)?;
    println!(
        "    {COUNT} x 2 MiB received in {:.1} s, sent in {:.1} s, echoed in {:.1} s, {} out of order",
        received.as_secs_f64(),
        sent.as_secs_f64(),
        echoed.as_secs_f64(),
        outcome.value("out of order")?
    );
    ensure!(
        outcome.stdout.matches(&web.sum).count() == COUNT,
        "something else was received"
    );
    Ok(())
}

/// A guest that answers on its port 7, published like this.
fn echo(context: &Context, net: &str) -> Result<Vm> {
    let vm = script(context, Kernel::TinyElf, net, "net-echo,7")?
        .append("ip=dhcp")
        .spawn()?;
    vm.wait_for("echo: ready on 7")?;
    Ok(vm)
}

fn published_ports(context: &Context) -> Result<()> {
    let outside = servers::outside()?;
    let (port, local_port) = (servers::free_port()?, servers::free_port()?);
    let mut vm = echo(
        context,
        &format!("user,publish={port}:7,publish={port}:7/udp,publish=127.0.0.1:{local_port}:7"),
    )?;
    let limit = Duration::from_secs(30);
    let noise = servers::noise(2 * MIB);
    for to in [
        (Ipv4Addr::LOCALHOST, port),
        (outside, port),
        (Ipv4Addr::LOCALHOST, local_port),
    ] {
        let to = SocketAddr::from(to);
        let back = servers::echo_over_tcp(to, &noise, limit)
            .with_context(|| format!("over TCP to {to}"))?;
        ensure!(back == noise, "something else came back from {to}");
    }
    // passt of before August 2024 does not answer to the loopback.
    let to = SocketAddr::from((outside, port));
    for len in [1, 1400, 20_000] {
        let back = servers::echo_over_udp(to, &noise[..len], context.deadline)?;
        ensure!(back == noise[..len], "something else came back from {to}");
    }
    let elsewhere = SocketAddr::from((outside, local_port));
    ensure!(
        servers::echo_over_tcp(elsewhere, b"x", limit).is_err(),
        "a port published on 127.0.0.1 is reached by {elsewhere}"
    );
    vm.type_in("enough\n")?;
    vm.exits_with(0)?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("the port is still taken")?;
    Ok(())
}

/// What a guest finds at a port of the host's loopback.
fn loopback(context: &Context, net: &str) -> Result<(String, String)> {
    let web = Web::serve(Ipv4Addr::LOCALHOST, b"a secret".to_vec())?;
    let outcome = script(
        context,
        Kernel::TinyElf,
        net,
        &format!("net-loopback,{}", web.address.port()),
    )?
    .append("ip=dhcp")
    .exits_with(0)?;
    let through = outcome.value("through the gateway")?.to_owned();
    let forced = outcome.value("to 127.0.0.1")?.to_owned();
    ensure!(
        outcome.value("packets sent")? != "0",
        "the guest tried nothing"
    );
    Ok((through, forced))
}

fn loopback_is_out_of_reach(context: &Context) -> Result<()> {
    let (through, forced) = loopback(context, "user")?;
    ensure!(through == "nothing", "through the gateway: {through}");
    ensure!(forced == "nothing", "to 127.0.0.1: {forced}");
    Ok(())
}

fn loopback_where_it_is_asked_for(context: &Context) -> Result<()> {
    let (through, forced) = loopback(context, "user,host-loopback")?;
    ensure!(through == "a secret", "through the gateway: {through}");
    ensure!(forced == "nothing", "to 127.0.0.1: {forced}");
    Ok(())
}

/// The helpers of an mvm, which are its children.
fn helpers(vm: &Vm) -> Result<Vec<Pid>> {
    let mut helpers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(process) = Process::read(pid)
            && process.parent == vm.pid()
        {
            helpers.extend(Pid::from_raw(pid));
        }
    }
    Ok(helpers)
}

/// What /proc/PID/stat says: proc(5).
struct Process {
    state: char,
    parent: u32,
}

impl Process {
    /// None where there is no such process.
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
        })
    }
}

/// Waits until the process has ended; whether somebody has waited for it is up to its parent.
fn wait_for_end(context: &Context, pid: Pid) -> Result<()> {
    while Process::read(pid.as_raw_nonzero().get()).is_some_and(|process| process.state != 'Z') {
        ensure!(Instant::now() < context.deadline, "the helper goes on");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn one_helper(vm: &Vm) -> Result<Pid> {
    match helpers(vm)?[..] {
        [helper] => Ok(helper),
        ref all => bail!("mvm has {} helpers", all.len()),
    }
}

/// Kills mvm while its guest uses the network, once `before` was done to the helper.
fn kill_mvm(context: &Context, before: impl Fn(Pid) -> Result<()>) -> Result<()> {
    let port = servers::free_port()?;
    let vm = echo(context, &format!("user,publish={port}:7"))?;
    let helper = one_helper(&vm)?;
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    ensure!(
        status.contains("CapEff:\t0000000000000000"),
        "mvm has capabilities:\n{status}"
    );
    before(helper)?;
    vm.signal(Signal::KILL)?;
    wait_for_end(context, helper)?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("the port is still taken")?;
    Ok(())
}

fn killed_mvm_leaves_no_helper(context: &Context) -> Result<()> {
    kill_mvm(context, |_| Ok(()))
}

fn killed_mvm_leaves_no_stopped_helper(context: &Context) -> Result<()> {
    kill_mvm(context, |helper| Ok(kill_process(helper, Signal::STOP)?))
}

fn killed_helper_takes_the_link_along(context: &Context) -> Result<()> {
    let mut vm = script(context, Kernel::TinyElf, "user", "net-link")?
        .append("ip=dhcp")
        .spawn()?;
    vm.wait_for("link: 1")?;
    let helper = one_helper(&vm)?;
    kill_process(helper, Signal::KILL)?;
    vm.wait_for("link: 0")?;
    ensure!(helpers(&vm)?.is_empty(), "the helper is a zombie");
    vm.type_in("as before\n")?;
    let outcome = vm.exits_with(0)?;
    outcome.says("went on: as before")?;
    let said = outcome.stderr.trim();
    ensure!(said.lines().count() == 1, "not one line: {said}");
    ensure!(said.contains("passt") && said.contains("SIGKILL"), "{said}");
    Ok(())
}

fn two_cards(context: &Context) -> Result<()> {
    let ports = [servers::free_port()?, servers::free_port()?];
    let cards = format!("user,publish={}:7", ports[0]);
    let mut vm = script(context, Kernel::TinyElf, &cards, "net-echo,7")?
        .arg("--net")
        .arg(format!("user,publish={}:7,mtu=1400", ports[1]))
        .append("ip=:::::eth0:dhcp")
        .spawn()?;
    vm.wait_for("echo: ready on 7")?;
    let helpers = helpers(&vm)?;
    ensure!(helpers.len() == 2, "{} helpers", helpers.len());
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
    let back = servers::echo_over_tcp(to, b"first", Duration::from_secs(30))?;
    ensure!(back == b"first", "something else came back");
    vm.type_in("enough\n")?;
    vm.exits_with(0)?;
    for helper in helpers {
        ensure!(
            Process::read(helper.as_raw_nonzero().get()).is_none(),
            "a helper has outlived its VM"
        );
    }
    Ok(())
}

/// The host's resolver listens on the loopback from now on, for this thread.
fn resolve_by_loopback(context: &Context) -> Result<()> {
    let resolv = context.path("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.1\n")?;
    // SAFETY: other threads keep the namespace that they have.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(own == 0, "no mounts of the test's own");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    mount_bind(&resolv, "/etc/resolv.conf")?;
    Ok(())
}

fn a_host_without_a_way_out(context: &Context) -> Result<()> {
    lan::alone(|| {
        resolve_by_loopback(context)?;
        let address = Ipv4Addr::new(10, 77, 0, 1);
        lan::ip(&format!("addr add {address}/32 dev lo"))?;
        let web = Web::serve(address, servers::noise(MIB))?;
        let somewhere = Ipv4Addr::new(198, 51, 100, 9);
        servers::play_name_server()?;
        // The address that stands for the host's resolver; newer helpers announce it by DHCP too.
        let name = servers::name_of(somewhere);
        let fetch = format!("net-fetch,{},{name},10.0.2.3", web.url());
        let outcome = script(context, Kernel::TinyElf, "user,mtu=1400", &fetch)?
            .append("ip=dhcp")
            .exits_with(0)?;
        ensure!(
            outcome.value("address")? == "10.0.2.15/24",
            "another address"
        );
        ensure!(outcome.value("mtu")? == "1400", "another MTU");
        ensure!(
            outcome.value("sum")? == web.sum,
            "it fetched something else"
        );
        ensure!(
            outcome.value("name")? == somewhere.to_string(),
            "the name is somewhere else"
        );
        Ok(())
    })
}

/// The guest makes itself an address of the host's network, reaches a server by it, and is reached.
fn ipv6(context: &Context) -> Result<()> {
    lan::alone(|| {
        lan::ip("link add up0 type dummy")?;
        lan::ip("link set up0 up")?;
        lan::ip("addr add 10.20.0.1/24 dev up0")?;
        lan::ip("route add default via 10.20.0.254")?;
        lan::ip("addr add 2001:db8::1/64 dev up0 nodad")?;
        lan::ip("-6 route add default via 2001:db8::fe dev up0")?;
        let server = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80);
        lan::ip(&format!("addr add {server}/128 dev lo nodad"))?;
        let web = Web::serve(server, servers::noise(MIB))?;
        let port = servers::free_port()?;
        let rootfs = context.rootfs()?;
        let script = format!(
            "until wget -q -O /tmp/page {}; do sleep 0.2; done; sha256sum </tmp/page
            ip -6 addr show dev eth0 scope global | grep -o 'inet6 2001:db8::[0-9a-f:]*/64'
            /test/probe echo 7 & read -r line; kill $!",
            web.url()
        );
        let mvm = context.boot(Kernel::TinyElf)?.arg("--rootfs").arg(rootfs);
        let card = format!("user,publish={port}:7");
        let mvm = mvm.arg("--net").arg(card).shell(&script);
        let mut vm = mvm.ordinary(context)?.spawn()?;
        vm.wait_for("echo: ready on 7")?;
        let here = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        for to in [Ipv6Addr::LOCALHOST, here] {
            let to = SocketAddr::from((to, port));
            let back = servers::echo_over_tcp(to, b"over TCP", Duration::from_secs(30))
                .with_context(|| format!("over TCP to {to}"))?;
            ensure!(back == b"over TCP", "something else came back from {to}");
        }
        vm.type_in("enough\n")?;
        let outcome = vm.exits_with(0)?;
        outcome.says(&web.sum)?;
        outcome.says("inet6 2001:db8::")
    })
}

fn refusals(context: &Context) -> Result<()> {
    let net = |net: &str| script(context, Kernel::TinyElf, net, "poweroff");
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = tcp.local_addr()?.port();
    refused(
        &net(&format!("user,publish={port}:80"))?,
        &format!("port {port}/tcp is taken"),
    )?;
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = udp.local_addr()?.port();
    refused(
        &net(&format!("user,publish=127.0.0.1:{port}:80/udp"))?,
        &format!("port 127.0.0.1:{port}/udp is taken"),
    )?;
    refused(
        &net("user,publish=192.0.2.1:80:80")?,
        "no address of this host",
    )?;
    refused(&net("user,publish=81:80")?, "ip_unprivileged_port_start")?;
    refused(&net("user,publish=80")?, "[ADDR:]HOST:GUEST[/udp]")?;
    refused(&net("user,publish=8080:80,publish=8080:81")?, "8080/tcp")?;
    refused(
        &net("user")?.env("PATH", context.path("no-such-place")),
        "install the package passt",
    )?;
    // What only passt itself finds out.
    let fake = context.path("passt");
    fs::write(&fake, "#!/bin/sh\necho 'no user namespaces' >&2\nexit 1\n")?;
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
    refused(
        &net("user")?.env("PATH", fake.parent().context("no directory")?),
        "passt does not start: no user namespaces",
    )?;
    Ok(())
}
