//! The loopback interface, and DHCP on the others where the kernel has not configured them already
//! (`ip=dhcp`).
//!
//! The DHCP client is smoltcp's; a packet socket is its network card, and what it learns is given to the
//! kernel (netdevice(7), `include/uapi/linux/route.h`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use smoltcp::iface::{Config, Interface, SocketSet, SocketStorage};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, Ipv4Address, Ipv4Cidr};

use crate::devices::names;
use crate::modules::{line_of, read_at};
use crate::run::sleep;

mod card;
mod kernel;

use card::Card;

/// How long a server may take to answer on one interface: some try for three seconds first whether the
/// address is free.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the client looks.
const TICK: Duration = Duration::from_millis(2);

/// What a server gave.
struct Lease {
    address: Ipv4Cidr,
    router: Option<Ipv4Address>,
    dns: Vec<Ipv4Address>,
}

/// Brings the network up; what a person should know.
pub fn configure(dhcp: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let Ok(socket) = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    ) else {
        // A kernel without a network.
        return warnings;
    };
    if let Err(errno) = kernel::bring_up(&socket, "lo") {
        warnings.push(format!("the loopback interface stays down: {errno}"));
    }
    if !dhcp {
        return warnings;
    }
    for name in names("/sys/class/net") {
        // ARPHRD_ETHER, `include/uapi/linux/if_arp.h`; what the kernel makes up has no device.
        let interface = format!("/sys/class/net/{name}");
        let kind = read_at(CWD, &format!("{interface}/type")).unwrap_or_default();
        let is_card = line_of(&kind) == b"1" && !names(&format!("{interface}/device")).is_empty();
        if !is_card || kernel::has_address(&socket, &name) {
            continue;
        }
        match ask(&socket, &name) {
            Ok(Some(lease)) => {
                if let Err(errno) = apply(&socket, &name, &lease) {
                    warnings.push(format!("interface {name} refuses what DHCP gave: {errno}"));
                }
            }
            Ok(None) => warnings.push(format!("no DHCP server answers on interface {name}")),
            Err(errno) => warnings.push(format!("no DHCP on interface {name}: {errno}")),
        }
    }
    warnings
}

/// Asks for a lease.
fn ask(socket: &OwnedFd, name: &str) -> Result<Option<Lease>, Errno> {
    kernel::bring_up(socket, name)?;
    let mut card = Card::open(kernel::index(socket, name)?)?;
    let hardware = EthernetAddress(kernel::hardware_address(socket, name)?);
    let mut config = Config::new(hardware.into());
    let [.., a, b, c, d] = hardware.0;
    config.random_seed = u32::from_be_bytes([a, b, c, d]).into();
    let mut time = Duration::ZERO;
    let mut interface = Interface::new(config, &mut card, now(time));
    let mut storage = [SocketStorage::EMPTY];
    let mut sockets = SocketSet::new(&mut storage[..]);
    let client = sockets.add(dhcpv4::Socket::new());
    while time < PATIENCE {
        interface.poll(now(time), &mut card, &mut sockets);
        let event = sockets.get_mut::<dhcpv4::Socket<'_>>(client).poll();
        if let Some(dhcpv4::Event::Configured(given)) = event {
            return Ok(Some(Lease {
                address: given.address,
                router: given.router,
                dns: given.dns_servers.iter().copied().collect(),
            }));
        }
        sleep(TICK);
        time += TICK;
    }
    Ok(None)
}

fn now(time: Duration) -> Instant {
    Instant::from_millis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn apply(socket: &OwnedFd, name: &str, lease: &Lease) -> Result<(), Errno> {
    kernel::set_address(socket, name, lease.address)?;
    if let Some(router) = lease.router {
        kernel::set_default_route(socket, router)?;
    }
    if !lease.dns.is_empty() {
        let lines = lease
            .dns
            .iter()
            .map(|server| format!("nameserver {server}\n"));
        name_servers(&lines.collect::<String>());
    }
    Ok(())
}

/// Puts the name servers where programs look for them, without changing the root file system: what is
/// there is covered.
fn name_servers(text: &str) {
    const COVER: &str = "/run/mvm-resolv.conf";
    const PLACE: &str = "/etc/resolv.conf";
    let put = |path: &str| -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
        write(&file, text.as_bytes()).map(drop)
    };
    let covered = put(COVER).and_then(|()| rustix::mount::mount_bind(COVER, PLACE));
    if covered.is_ok() {
        return;
    }
    // Not there: a link into /run that has nothing behind it yet, or nothing at all.
    if let Ok(target) = rustix::fs::readlinkat(CWD, PLACE, Vec::new()) {
        let target = target.to_string_lossy();
        let target = match target.find("/run/") {
            Some(at) => target[at..].to_owned(),
            None => return,
        };
        let parents = target.match_indices('/').skip(1);
        for (at, _) in parents {
            let _ = rustix::fs::mkdirat(CWD, &target[..at], Mode::from_raw_mode(0o755));
        }
        let _ = put(&target);
    } else {
        let _ = put(PLACE);
    }
}
