//! Network cards as text and as tables.

use super::*;

#[test]
fn the_command_line_form_round_trips() {
    let tap = |name: &str, queues| NetKind::Tap {
        name: name.to_owned(),
        queues,
    };
    for (text, kind, mac, mtu) in [
        ("tap=tap0", tap("tap0", 1), None, None),
        (
            "tap=a,,b,mac=02:00:00:00:00:01,mtu=9000,queues=2",
            tap("a,b", 2),
            Some("02:00:00:00:00:01"),
            Some(9000),
        ),
        ("fd=3", NetKind::TapFds { fds: vec![3] }, None, None),
        (
            "fd=3:7,mtu=1500",
            NetKind::TapFds { fds: vec![3, 7] },
            None,
            Some(1500),
        ),
        ("user", NetKind::User(UserConfig::default()), None, None),
        (
            "user,publish=8080:80,publish=[::1]:5353:53/udp,host-loopback,mtu=1400",
            NetKind::User(UserConfig {
                publish: ["8080:80", "[::1]:5353:53/udp"]
                    .map(|text| text.parse().unwrap())
                    .into(),
                host_loopback: true,
            }),
            None,
            Some(1400),
        ),
    ] {
        let card = NetConfig {
            kind,
            mac: mac.map(|text| text.parse().unwrap()),
            mtu,
            rate: RateLimit::default(),
        };
        assert_eq!(text.parse::<NetConfig>().unwrap(), card);
        assert_eq!(card.to_string(), text);
    }
}

#[test]
fn bad_cards_say_what_is_wrong() {
    const KIND: &str =
        "a network card goes to one of user, tap=NAME and fd=N; give exactly one of them";
    const NAME: &str = "is not a tap's name; it has 1 to 15 bytes of printable ASCII without '/', ':', '%' \
                        and spaces";
    const QUEUES: &str = "queue pairs asked for; a network card has 1 to 31";
    const MTU: &str = "is impossible; a network card has 68 to 65521";
    let name = |name: &str| (format!("tap={name}"), format!("'{name}' {NAME}"));
    let queues = |n: &str| (format!("tap=t,queues={n}"), format!("'{n}' {QUEUES}"));
    let mtu = |n: &str| (format!("tap=t,mtu={n}"), format!("an MTU of '{n}' {MTU}"));
    let mtu_of_user = |n: &str| (format!("user,mtu={n}"), format!("an MTU of '{n}' {MTU}"));
    let cases = [
        ("mtu=1500".to_owned(), KIND.to_owned()),
        ("tap=t,fd=3".to_owned(), KIND.to_owned()),
        ("tap=t,user".to_owned(), KIND.to_owned()),
        (
            "user,queues=2".to_owned(),
            "queues is for tap=NAME; a user-mode network has one queue pair".to_owned(),
        ),
        (
            "tap=t,publish=80:80".to_owned(),
            "publish and host-loopback are for user; the guest on a tap has an address of its own"
                .to_owned(),
        ),
        (
            "user,publish".to_owned(),
            "'publish' needs a value; write publish=VALUE".to_owned(),
        ),
        mtu_of_user("65522"),
        name(""),
        name("."),
        name("a/b"),
        name("tap%d"),
        name("a b"),
        name("abcdefghijklmnop"),
        queues("0"),
        queues("32"),
        queues("x"),
        mtu("67"),
        mtu("65522"),
        mtu("70000"),
        (
            "fd=3,queues=1".to_owned(),
            "queues is for tap=NAME; with fd=N there are as many queue pairs as descriptors, such as fd=3:4"
                .to_owned(),
        ),
        (
            "fd=2".to_owned(),
            "'2' is not an open descriptor of a tap; write its number, such as fd=3, or several, such as \
             fd=3:4"
                .to_owned(),
        ),
        (
            "tap=t,mac=01:00:00:00:00:00".to_owned(),
            "MAC address 01:00:00:00:00:00 is a multicast address; the first byte of a card's is even, such \
             as 02"
                .to_owned(),
        ),
        (
            "tap=t,mac=02:00:00:00:00:01,macc=x".to_owned(),
            "unknown key 'macc', did you mean 'mac'?; known keys: user, tap, fd, mac, mtu, queues, bps, iops, burst, publish, host-loopback".to_owned(),
        ),
    ];
    for (text, message) in cases {
        let error = text.parse::<NetConfig>().unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
    }
    assert!("fd=x".parse::<NetConfig>().is_err());
    assert!("fd=-1".parse::<NetConfig>().is_err());
}

#[test]
fn no_two_cards_want_the_same() {
    let check = |texts: &[&str]| {
        let cards: Vec<NetConfig> = texts.iter().map(|text| text.parse().unwrap()).collect();
        validate_all(&cards)
    };
    assert_eq!(check(&["tap=a", "tap=b", "fd=3", "fd=4:5"]), Ok(()));
    assert_eq!(
        check(&["tap=a", "tap=a"]),
        Err(NetConfigError::TapTwice("a".to_owned()))
    );
    assert_eq!(check(&["fd=3", "fd=4:3"]), Err(NetConfigError::FdTwice(3)));
    assert_eq!(
        check(&["user,publish=80:80", "user,publish=80:80/udp"]),
        Ok(())
    );
    for cards in [
        &["user,publish=127.0.0.1:80:80,publish=80:80"][..],
        &["user,publish=80:80", "user,publish=80:81"],
    ] {
        assert!(matches!(
            check(cards),
            Err(NetConfigError::PublishedTwice(port)) if port == "80/tcp"
        ));
    }
    let mac = |name| format!("tap={name},mac=02:00:00:00:00:01");
    let error = check(&[&mac("a"), &mac("b")]).unwrap_err();
    assert!(matches!(error, NetConfigError::MacTwice(_)), "{error}");
}
