//! Taps of the kernel's own, each test in a network namespace of its own. Where that is not allowed the
//! tests say so and do nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::*;
use crate::iovec::IoVec;
use crate::mem::GuestSlice;
use crate::virtio::net::backend::{HEADER, NetBackend, Received};

/// Runs `test` on a thread with a network namespace of its own, where that and taps are allowed.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        // SAFETY: the call concerns this thread alone, which owns nothing of the network yet.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !alone || sys::open_tun().is_err() {
            println!("skipped: this user may not make network namespaces and taps");
            return;
        }
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

/// A tap that stays, made with `flags`, as `ip tuntap add` makes it; up or not.
fn made(name: &str, flags: libc::c_int) {
    let tun = sys::open_tun().unwrap();
    sys::attach(tun.as_fd(), name, libc::IFF_TAP | libc::IFF_NO_PI | flags).unwrap();
    sys::set_persistent(tun.as_fd()).unwrap();
    set_up(name, true);
}

fn set_up(name: &str, up: bool) {
    let socket = sys::control_socket().unwrap();
    let flags = sys::flags(socket.as_fd(), name).unwrap();
    let flags = if up {
        flags | libc::IFF_UP
    } else {
        flags & !libc::IFF_UP
    };
    sys::set_flags(socket.as_fd(), name, flags).unwrap();
}

fn exists(name: &str) -> bool {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    netdevice::name_to_index(any, name).is_ok()
}

fn refused(result: Result<OpenTap, TapError>) -> String {
    result.map(|tap| tap.name).unwrap_err().to_string()
}

#[test]
fn a_missing_tap_is_made_and_goes_with_its_card() {
    in_a_namespace(|| {
        let tap = open("t0", 1, Some(1400)).unwrap();
        assert!(exists("t0"));
        assert_eq!((tap.mtu, tap.backends.len()), (Some(1400), 1));
        drop(tap);
        assert!(!exists("t0"));
        assert_eq!(open("t0", 4, None).unwrap().backends.len(), 4);
        assert!(!exists("t0"));
    });
}

#[test]
fn a_tap_that_is_there_stays_and_serves_one_card() {
    in_a_namespace(|| {
        made("t0", 0);
        let tap = open("t0", 1, None).unwrap();
        assert_eq!(tap.mtu, Some(1500));
        assert!(refused(open("t0", 1, None)).contains("tap t0 is in use by another process"));
        drop(tap);
        assert!(exists("t0"));
        assert!(open("t0", 1, None).is_ok());
        let line = refused(open("t0", 2, None));
        assert!(
            line.contains("made for one queue and 2 are asked for"),
            "{line}"
        );
        made("t1", libc::IFF_MULTI_QUEUE);
        assert_eq!(open("t1", 3, None).unwrap().backends.len(), 3);
        assert_eq!(open("t1", 1, None).unwrap().backends.len(), 1);
    });
}

#[test]
fn other_interfaces_are_no_taps() {
    in_a_namespace(|| {
        for queues in [1, 2] {
            let line = refused(open("lo", queues, None));
            assert_eq!(
                line,
                "lo is a network interface of another kind, not a tap; choose another name"
            );
        }
    });
}

#[test]
fn descriptors_are_taken_over_if_they_are_a_taps() {
    in_a_namespace(|| {
        let tun = |name: &str, flags| {
            let tun = sys::open_tun().unwrap();
            sys::attach(tun.as_fd(), name, flags).unwrap();
            tun
        };
        const GOOD: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let good = tun("t0", GOOD);
        let tap = open_fds(&[good.as_raw_fd()], None).unwrap();
        assert_eq!((tap.name.as_str(), tap.mtu), ("t0", Some(1500)));
        let multi = ["t1", "t1", "t2"].map(|name| tun(name, GOOD | libc::IFF_MULTI_QUEUE));
        let [a, b, c] = multi.each_ref().map(AsRawFd::as_raw_fd);
        assert_eq!(open_fds(&[a, b], None).unwrap().backends.len(), 2);
        let line = refused(open_fds(&[a, c], None));
        assert!(
            line.ends_with("are of two taps, t1 and t2; a card has one"),
            "{line}"
        );

        let plain = std::fs::File::open("/dev/null").unwrap();
        for (fd, words) in [
            (plain.as_fd(), "is not a tap; open /dev/net/tun"),
            (sys::open_tun().unwrap().as_fd(), "is not a tap"),
            (tun("n0", libc::IFF_TUN).as_fd(), "is not a tap"),
            (
                tun("t3", libc::IFF_TAP).as_fd(),
                "without the virtio header",
            ),
        ] {
            let line = refused(open_fds(&[fd.as_raw_fd()], None));
            assert!(line.contains(words), "{line}");
        }
        let line = refused(open_fds(&[987], None));
        assert!(line.starts_with("descriptor 987 is not open"), "{line}");
    });
}

#[test]
fn the_link_is_seen_by_name_and_by_descriptor() {
    in_a_namespace(|| {
        made("t0", 0);
        let mut tap = open("t0", 1, None).unwrap();
        let event = tap.uplink.link_event().unwrap();
        // SAFETY: the uplink keeps its socket open for longer than this.
        let event = unsafe { BorrowedFd::borrow_raw(event) };
        let is_told = || {
            let mut event = [rustix::event::PollFd::from_borrowed_fd(
                event,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut event, None).unwrap() == 1
        };
        for up in [true, false, true, false] {
            set_up("t0", up);
            // That it is running the kernel says a little after it is up.
            while tap.uplink.link_is_up() != up {
                assert!(is_told());
            }
        }
        // Without a name that means anything here.
        let nameless = Link::of(sys::open_tun().unwrap().as_fd(), "t0");
        assert!(nameless.is_err(), "no interface at all");
        let foreign = Link::foreign();
        let tun = sys::open_tun().unwrap();
        sys::attach(tun.as_fd(), "t1", libc::IFF_TAP).unwrap();
        for up in [false, true, false] {
            set_up("t1", up);
            assert_eq!(foreign.is_up(tun.as_fd()), up);
        }
        assert_eq!(foreign.event(), None);
    });
}

/// An ARP request, which the kernel answers to nobody here; what counts is that it is a frame.
fn broadcast(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(HEADER + len, 0x5a);
    frame
}

fn slices(bytes: &mut [u8]) -> [IoVec<'_>; 1] {
    [IoVec::new(&GuestSlice::from(bytes))]
}

#[test]
fn a_down_tap_loses_frames_and_takes_them_again_when_it_is_up() {
    in_a_namespace(|| {
        made("t0", 0);
        let mut tap = open("t0", 1, None).unwrap();
        let queue = &mut tap.backends[0];
        let mut frame = broadcast(60);
        let mut send = |queue: &mut Box<dyn NetBackend>| queue.send(&slices(&mut frame));
        send(queue).unwrap();
        set_up("t0", false);
        assert_eq!(send(queue).unwrap_err().kind(), io::ErrorKind::NetworkDown);
        set_up("t0", true);
        send(queue).unwrap();
        // Frames that the kernel takes for none.
        for bad in [&mut [0; 12][..], &mut [0; 13], &mut [0xff; 80]] {
            let error = queue.send(&slices(bad)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
    });
}

#[test]
fn frames_come_whole_into_whatever_there_is_room_for() {
    in_a_namespace(|| {
        let mut tap = open("t0", 1, Some(9000)).unwrap();
        let queue = &mut tap.backends[0];
        let raw = packet_socket("t0");
        let mut buffer = vec![0; 1 << 17];
        // What the interface says by itself when it comes up.
        while queue.discard().is_ok() {}
        for len in [60, 1514, 9014] {
            let sent = broadcast(len).split_off(HEADER);
            rustix::net::send(&raw, &sent, rustix::net::SendFlags::empty()).unwrap();
            // Others may have something to say too (IPv6).
            let got = loop {
                let mut short = [0; 20];
                let Received::TooLong(needed) = queue.receive(&slices(&mut short)).unwrap() else {
                    panic!("no frame is that short");
                };
                let more = queue.receive(&slices(&mut buffer[..needed - 1])).unwrap();
                assert_eq!(more, Received::TooLong(needed), "one byte too few");
                let whole = queue.receive(&slices(&mut buffer[..needed])).unwrap();
                assert_eq!(whole, Received::Frame(needed));
                if needed == HEADER + len {
                    break buffer[HEADER..needed].to_vec();
                }
            };
            assert_eq!(got, sent);
        }
    });
}

/// A socket that sends frames through the interface `name`: packet(7).
fn packet_socket(name: &str) -> OwnedFd {
    let socket = socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap();
    let index = netdevice::name_to_index(&socket, name).unwrap();
    // SAFETY: all zeroes are an address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_ifindex = i32::try_from(index).unwrap();
    // SAFETY: the address is one of the socket's family, and as long as is said.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            u32::try_from(size_of_val(&address)).unwrap(),
        )
    };
    assert_eq!(bound, 0);
    socket
}

#[test]
fn queues_are_switched_off_and_on() {
    in_a_namespace(|| {
        let mut tap = open("t0", 3, None).unwrap();
        let detached = |queue: &dyn NetBackend| {
            // SAFETY: the queue keeps its descriptor open for longer than this.
            let fd = unsafe { BorrowedFd::borrow_raw(queue.fd()) };
            sys::interface(fd).unwrap().1 & libc::IFF_DETACH_QUEUE != 0
        };
        for pairs in [3, 1, 2, 3, 1] {
            tap.uplink.set_pairs(pairs).unwrap();
            let off = tap.backends.iter().filter(|queue| detached(queue.as_ref()));
            assert_eq!(off.count(), 3 - usize::from(pairs));
        }
    });
}

#[test]
fn every_offload_is_one_the_kernel_knows() {
    in_a_namespace(|| {
        let mut tap = open("t0", 1, None).unwrap();
        let all = tap.uplink.offloads();
        for bits in 0..1 << 11_u64 {
            let accepted = features::usable(Features::from_bits_retain(bits) & all);
            tap.uplink.set_offloads(accepted).unwrap();
        }
    });
}

#[test]
fn a_tap_that_is_deleted_is_a_link_that_is_down() {
    in_a_namespace(|| {
        let mut tap = open("t0", 2, None).unwrap();
        delete("t0");
        assert!(!exists("t0"));
        assert!(!tap.uplink.link_is_up());
        tap.uplink.set_offloads(Features::empty()).unwrap();
        tap.uplink.set_pairs(1).unwrap();
        let mut frame = broadcast(60);
        let queue = &mut tap.backends[0];
        for error in [
            queue.send(&slices(&mut frame)).unwrap_err(),
            queue.receive(&slices(&mut frame)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::NetworkDown);
        }
    });
}

/// Deletes an interface: RTM_DELLINK, rtnetlink(7).
fn delete(name: &str) {
    let netlink = sys::link_socket().unwrap();
    let index = netdevice::name_to_index(sys::control_socket().unwrap(), name).unwrap();
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(u16::try_from(libc::NLM_F_REQUEST).unwrap().to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // flags, change
    rustix::net::send(&netlink, &message, rustix::net::SendFlags::empty()).unwrap();
}

/// Where `struct virtio_net_hdr` says what kind of segments a frame is to be cut into, and its word for UDP.
const GSO_TYPE: usize = 1;
const GSO_UDP: u8 = 3;
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

/// A UDP datagram of `len` bytes from 10.99.0.2 to 10.99.0.1, port 7, in one frame, which is to be cut into packets of
/// 1500 bytes by whoever has to, and its checksum completed.
fn long_datagram(len: usize) -> Vec<u8> {
    let mut frame = vec![1, GSO_UDP];
    for field in [HEADERS, 1480, 14 + 20, 6, 0] {
        frame.extend(u16::try_from(field).unwrap().to_le_bytes());
    }
    let ip_len = u16::try_from(20 + 8 + len).unwrap();
    let udp_len = u16::try_from(8 + len).unwrap();
    let words = |bytes: &[u8]| -> u32 {
        let words = bytes.chunks(2);
        words
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum()
    };
    let fold = |sum: u32| u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    let addresses = [10, 99, 0, 2, 10, 99, 0, 1];
    let mut ip = vec![0x45, 0];
    ip.extend(ip_len.to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(addresses);
    let checksum = !fold(words(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = fold(words(&addresses) + 17 + u32::from(udp_len));
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(ip);
    frame.extend([0, 7, 0, 7]);
    frame.extend(udp_len.to_be_bytes());
    frame.extend(pseudo.to_be_bytes());
    frame.extend((0..=250).cycle().take(len));
    frame
}

/// Gives the interface an address: SIOCSIFADDR, netdevice(7).
fn set_address(name: &str, address: [u8; 4]) {
    let address = libc::sockaddr_in {
        sin_family: u16::try_from(libc::AF_INET).unwrap(),
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address),
        },
        sin_zero: [0; 8],
    };
    let mut request = sys::request(name).unwrap();
    // SAFETY: both are socket addresses of 16 bytes.
    request.ifr_ifru.ifru_addr =
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    let socket = sys::control_socket().unwrap();
    sys::ifreq(socket.as_fd(), libc::SIOCSIFADDR, &mut request).unwrap();
}

#[test]
fn a_long_datagram_of_the_drivers_is_one_frame() {
    in_a_namespace(|| {
        let mut tap = open("t0", 1, Some(1500)).unwrap();
        set_address("t0", [10, 99, 0, 1]);
        let host = std::net::UdpSocket::bind("10.99.0.1:7").unwrap();
        let limit = std::time::Duration::from_secs(60);
        host.set_read_timeout(Some(limit)).unwrap();
        let mut frame = long_datagram(20_000);
        tap.backends[0].send(&slices(&mut frame)).unwrap();
        let mut got = [0; 1 << 16];
        let len = host.recv(&mut got).unwrap();
        assert!(got[..len] == frame[HEADER + HEADERS..]);
    });
}

/// Linux takes the frame whole where it may, but has cut it for the receiver since 4.14, whatever that accepts.
#[test]
fn a_long_datagram_arrives_as_the_driver_takes_it() {
    in_a_namespace(|| {
        let mut tap = open("t0", 1, Some(1500)).unwrap();
        let raw = packet_socket("t0");
        with_header(&raw);
        let mut sent = long_datagram(20_000);
        let datagram = sent.split_off(HEADER);
        // The packet socket's header has no number of buffers.
        sent.truncate(HEADER - 2);
        sent.extend(&datagram);
        let all = tap.uplink.offloads();
        for takes_it in [true, false] {
            let left_out = match takes_it {
                true => Features::empty(),
                false => feature(VIRTIO_NET_F_GUEST_UFO),
            };
            let accepted = features::usable(all - left_out);
            tap.uplink.set_offloads(accepted).unwrap();
            let queue = &mut tap.backends[0];
            while queue.discard().is_ok() {}
            rustix::net::send(&raw, &sent, rustix::net::SendFlags::empty()).unwrap();
            let mut got = vec![0; datagram.len() - 34];
            let mut bytes = 0;
            let mut buffer = vec![0; 1 << 17];
            while let Ok(Received::Frame(len)) = queue.receive(&slices(&mut buffer)) {
                let (header, frame) = buffer[..len].split_at(HEADER);
                // Not what the interface has to say by itself.
                if frame[12..14] != [8, 0] {
                    continue;
                }
                if header[GSO_TYPE] == GSO_UDP {
                    assert!(takes_it, "a frame of {len} bytes");
                } else {
                    assert!(frame.len() <= 1514, "a frame of {len} bytes");
                }
                // RFC 791 §3.1: in units of eight bytes.
                let fragment = u16::from_be_bytes([frame[20], frame[21]]);
                let at = usize::from(fragment & 0x1fff) * 8;
                let data = &frame[34..];
                got[at..at + data.len()].copy_from_slice(data);
                bytes += data.len();
            }
            assert_eq!(bytes, got.len());
            // But for the checksum, which somebody had to complete.
            assert!(got[..6] == datagram[34..40] && got[8..] == datagram[42..]);
        }
    });
}

/// Has frames begin with a virtio header: PACKET_VNET_HDR, packet(7).
fn with_header(socket: &OwnedFd) {
    let one: libc::c_int = 1;
    // SAFETY: the option is an int, and as long as is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const one).cast(),
            u32::try_from(size_of_val(&one)).unwrap(),
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
