//! Why a tap cannot be used: one line each, with the command that mends it.

use std::io;

use thiserror::Error;

/// The longest name an interface can have.
pub const NAME_MAX: usize = super::sys::NAME_SIZE - 1;

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// /dev/net/tun cannot be opened.
    #[error(
        "/dev/net/tun cannot be opened for tap {name}: {source}; {}",
        tun_remedy(source)
    )]
    Tun {
        /// The tap.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// There is no such tap, and no right to make one.
    #[error(
        "tap {name} does not exist and may not be made by this user; run 'sudo ip tuntap add dev {name} mode tap \
         user $USER{multi}' and 'sudo ip link set {name} up'"
    )]
    Missing {
        /// The tap.
        name: String,
        /// What a tap of several queues needs besides.
        multi: &'static str,
    },
    /// The tap belongs to somebody else.
    #[error(
        "tap {name} belongs to another user; give it to this one with 'sudo ip tuntap del dev {name} mode tap{multi}' \
         and 'sudo ip tuntap add dev {name} mode tap user $USER{multi}'"
    )]
    NotOurs {
        /// The tap.
        name: String,
        /// What a tap of several queues needs besides.
        multi: &'static str,
    },
    /// Another process uses it.
    #[error("tap {0} is in use by another process; end that one, or make a further tap")]
    InUse(String),
    /// It is another kind of interface.
    #[error("{0} is a network interface of another kind, not a tap; choose another name")]
    NotATap(String),
    /// It was made with one queue.
    #[error(
        "tap {name} was made for one queue and {queues} are asked for; make it anew with 'ip tuntap del dev {name} \
         mode tap' and 'ip tuntap add dev {name} mode tap multi_queue'"
    )]
    OneQueue {
        /// The tap.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// Its MTU is another, and may not be changed.
    #[error(
        "tap {name} has an MTU of {has}, not {wanted}, and this user may not change it; run 'sudo ip link set {name} \
         mtu {wanted}'"
    )]
    Mtu {
        /// The tap.
        name: String,
        /// What it is.
        has: i32,
        /// What was asked for.
        wanted: u16,
    },
    /// A descriptor that is not open.
    #[error(
        "descriptor {fd} is not open; open the tap and pass it on, as in 'mvm --net fd={fd} {fd}<>/dev/tapN'"
    )]
    NotOpen {
        /// Its number.
        fd: i32,
    },
    /// A descriptor of something else.
    #[error(
        "descriptor {fd} is not a tap; open /dev/net/tun and attach it with TUNSETIFF before it is passed on"
    )]
    FdNotATap {
        /// Its number.
        fd: i32,
    },
    /// A descriptor of a tap without what the card needs.
    #[error("descriptor {fd} is of the tap {name}, but without {lacks}; attach it with {needs}")]
    FdLacks {
        /// Its number.
        fd: i32,
        /// The tap.
        name: String,
        /// What is missing.
        lacks: &'static str,
        /// The flags that bring it.
        needs: &'static str,
    },
    /// Descriptors of two taps.
    #[error(
        "descriptors {first} and {other} are of two taps, {name} and {other_name}; a card has one"
    )]
    TwoTaps {
        /// The first descriptor.
        first: i32,
        /// Its tap.
        name: String,
        /// The one that does not go with it.
        other: i32,
        /// The other tap.
        other_name: String,
    },
    /// The host refused something else.
    #[error("tap {name}: {what}: {source}")]
    Host {
        /// The tap.
        name: String,
        /// What was asked of the host.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn tun_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let this user open it with 'sudo chmod 666 /dev/net/tun', or pass an open tap with fd=N"
        }
        _ => "load its driver with 'sudo modprobe tun'",
    }
}
