//! User networking, to servers in a network namespace of the test's own: nothing here leaves this host.

use crate::support::{eventually, noise, processes, Backend, Job, Run};

/// A network with a name server and a server at 192.0.2.1, and a server on its loopback. The first
/// says how many have come to the second; both send back what they get until it ends.
const NETWORK: &str = r#"
ip link set lo up
ip link add up0 type veth peer name up1
ip link set up1 up
ip addr add 192.0.2.1/24 dev up0
ip link set up0 up
ip route add default via 192.0.2.254
mount -t tmpfs tmpfs /mnt
echo 'nameserver 192.0.2.1' >/mnt/resolv.conf
mount --bind /mnt/resolv.conf /etc/resolv.conf
perl -e '
use strict; use IO::Socket::INET; use IO::Select;
my $launcher = getppid();
my $names = IO::Socket::INET->new(LocalAddr => "192.0.2.1", LocalPort => 53, Proto => "udp") or die $!;
my $inside = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 7001, Listen => 9) or die $!;
my $outside = IO::Socket::INET->new(LocalAddr => "192.0.2.1", LocalPort => 7000, Listen => 9) or die $!;
my ($came, $all) = (0, IO::Select->new($names, $inside, $outside));
while (getppid() == $launcher) {
    for my $ready ($all->can_read(0.1)) {
        if ($ready == $names) {
            my $from = $names->recv(my $query, 512);
            substr($query, 2, 6) = pack("n3", 0x8180, 1, 1);
            my $question = index($query, "\0", 12) + 5;
            $names->send(substr($query, 0, $question) . pack("nnnNnC4", 0xc00c, 1, 1, 60, 4, 192, 0, 2, 1), 0, $from);
        } elsif ($ready == $inside or $ready == $outside) {
            my $client = $ready->accept;
            $came++ if $ready == $inside;
            $client->syswrite("$came\n");
            $all->add($client);
        } else {
            my $length = $ready->sysread(my $bytes, 65536);
            if ($length) { $ready->blocking(1); $ready->syswrite($bytes) } else { $all->remove($ready); close $ready }
        }
    }
}' >/dev/null 2>&1 &
until grep -q ':1B58 ' /proc/net/tcp; do sleep 0.02; done
"#;

/// Who reaches the server at an address and port, and what it says first.
const ASK: &str = r#"ask() { (exec 3<>/dev/tcp/$1/$2 && head -n1 <&3) 2>/dev/null; };"#;

fn bash<'a>(job: &'a Job, script: &str) -> Option<Run<'a>> {
    let run = job.run(&["bash", "-c", &format!("{ASK} {script}")]);
    Some(run.debian()?.network(NETWORK))
}

#[test]
fn names_and_connections() {
    let Some(job) = Job::new() else { return };
    let sent = noise(3_000_000);
    job.put(job.path().join("sent"), &sent);
    let script =
        "getent hosts any.name.test; exec 3<>/dev/tcp/any.name.test/7000; read -u3 n; echo $n; \
        cat sent >&3 & head -c 3000000 <&3 >back; wait; cat /etc/resolv.conf";
    let Some(run) = bash(&job, script) else {
        return;
    };
    let text = run.with(&["--network", "user"]).go().exits(0).text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("192.0.2.1 "), "{lines:?}");
    assert_eq!(lines[1..], ["0", "nameserver 10.0.2.3"]);
    assert!(std::fs::read(job.path().join("back")).unwrap() == sent);
}

#[test]
fn the_hosts_loopback_is_reached_only_when_asked() {
    let Some(job) = Job::new() else { return };
    // Root of a guest sends what it likes: here the first packet of a connection to 127.0.0.1 and to
    // 0.0.0.0, as a frame of its own making.
    job.put(
        job.path().join("forge"),
        r#"use strict; use Socket;
        my ($from, $to) = (inet_aton("10.0.2.15"), inet_aton($ARGV[0]));
        sub sum { my $s = 0; $s += $_ for unpack("n*", $_[0]); $s = ($s & 0xffff) + ($s >> 16) while $s >> 16; ~$s & 0xffff }
        my $tcp = pack("nnNNnnnn", 40000, 7001, 1, 0, 0x5002, 65000, 0, 0);
        substr($tcp, 16, 2) = pack("n", sum($from . $to . pack("nn", 6, length $tcp) . $tcp));
        my $ip = pack("CCnnnCCn", 0x45, 0, 40, 1, 0, 64, 6, 0) . $from . $to;
        substr($ip, 10, 2) = pack("n", sum($ip));
        my $frame = pack("H*", "52550a00020252540a00020f0800") . $ip . $tcp;
        socket(my $wire, 17, 3, 8) or die "socket: $!";
        my ($file) = grep { -e } glob("/sys/class/net/{vec,eth}0/ifindex");
        open(my $index, "<", $file) or die $!;
        chomp(my $number = <$index>);
        send($wire, $frame, 0, pack("SnlSCCx8", 17, 0x0800, $number, 0, 0, 6)) or die "send: $!";"#,
    );
    let script = "perl forge 127.0.0.1 && perl forge 0.0.0.0 && echo forged; ask 127.0.0.1 7001; \
        timeout 3 bash -c \"exec 3<>/dev/tcp/10.0.2.2/7001 && echo reached\" 2>/dev/null; \
        ask 192.0.2.1 7000";
    let Some(run) = bash(&job, script) else {
        return;
    };
    run.with(&["--network", "user", "--root"])
        .go()
        .exits(0)
        .prints("forged\n0\n");
    let Some(run) = bash(&job, "ask 10.0.2.2 7001; ask 192.0.2.1 7000") else {
        return;
    };
    let asked = ["--network", "user,host-loopback"];
    run.with(&asked).go().exits(0).prints("1\n1\n");
}

#[test]
fn without_it_there_is_only_loopback() {
    let Some(job) = Job::new() else { return };
    let script =
        "ls -d /sys/class/net/vec* 2>&1 | grep -c vec0; wc -l </proc/net/route; ask 192.0.2.1 7000";
    for options in [&[][..], &["--network", "none"]] {
        let Some(run) = bash(&job, script) else {
            return;
        };
        run.with(options).go().exits(1).prints("0\n1\n");
    }
}

#[test]
fn the_images_own_system_has_it_too() {
    let Some(job) = Job::new() else { return };
    let Some(run) = bash(&job, "getent hosts x.test; ask 192.0.2.1 7000") else {
        return;
    };
    let options = ["--network", "user", "--boot", "system"];
    run.with(&options)
        .limit(120)
        .go()
        .exits(0)
        .shows(&["192.0.2.1 ", "\n0\n"]);
}

#[test]
fn nothing_stays_when_the_launcher_is_killed() {
    let Some(job) = Job::new() else { return };
    for at in ["none", "boot", "job"] {
        let Some(run) = bash(&job, "ask 192.0.2.1 7000; exec sleep 1000") else {
            return;
        };
        let running = run.with(&["--network", "user"]).start();
        let is_passt = |pid: u32| {
            let name = processes::executable(pid).unwrap_or_default();
            name.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("passt"))
        };
        let mut helpers = Vec::new();
        match at {
            "none" => {}
            "boot" => eventually("passt runs", || {
                helpers = processes::descendants(running.pid());
                helpers.retain(|pid| is_passt(*pid));
                !helpers.is_empty()
            }),
            _ => {
                running.until_it_prints("0\n");
                helpers = processes::descendants(running.pid());
                helpers.retain(|pid| is_passt(*pid));
                assert_eq!(helpers.len(), 1);
            }
        }
        running.signal(libc::SIGKILL);
        // Looks for orphans.
        assert_eq!(running.finish().signal(), Some(libc::SIGKILL), "{at}");
        eventually("passt ends", || !helpers.iter().any(|pid| is_passt(*pid)));
    }
}

#[test]
fn a_kept_image_keeps_its_name_server() {
    let Some(job) = Job::new() else { return };
    let Some(image) = crate::support::debian_image() else {
        return;
    };
    let own = job.beside("own.img");
    crate::support::tools::copy_sparse(image, &own);
    job.give(&own);
    let kept = |script: &str| job.sh(script).image(&own).with(&["--write", "--root"]);
    kept("echo 'nameserver 192.0.2.77' >/etc/resolv.conf")
        .go()
        .exits(0);
    let run = kept("cat /etc/resolv.conf").with(&["--network", "user"]);
    run.network(NETWORK)
        .go()
        .exits(0)
        .prints("nameserver 10.0.2.3\n");
    kept("cat /etc/resolv.conf")
        .go()
        .exits(0)
        .prints("nameserver 192.0.2.77\n");
}

#[test]
fn what_is_missing_is_said_before_the_boot() {
    let Some(job) = Job::new() else { return };
    let hide = "for p in /usr/bin/passt /usr/local/bin/passt; do [ ! -e $p ] || mount --bind /dev/null $p; done";
    let run = job.run(&["true"]).with(&["--network", "user"]);
    run.mounts(hide)
        .go()
        .exits(125)
        .says(&["passt is not installed", "install the package passt"]);
    // A host without any network.
    let run = job
        .run(&["true"])
        .with(&["--network", "user"])
        .network("true");
    let why = match job.site.backend {
        Backend::Uml | Backend::Qemu => "passt:",
        // QEMU is in the daemon's network, which may be another than the launcher's: so it is QEMU who says it.
        _ => "Network is unreachable",
    };
    let done = run.go();
    // Newer versions of passt are content with that.
    if job.site.backend == Backend::Libvirt || done.code() != Some(0) {
        done.exits(125).says(&["cannot", why]);
    }
    let run = job.run(&["true"]).with(&["--network", "bridge"]);
    run.go()
        .exits(2)
        .says(&["none, user or user,host-loopback"]);
    let run = job.run(&["true"]).env("APPPOT_NETWORK", "bridge");
    run.go().exits(125).says(&["APPPOT_NETWORK"]);
}

#[test]
fn a_dry_run_shows_the_helper() {
    let Some(job) = Job::new() else { return };
    let run = job.run(&["true"]).with(&["--network", "user", "--dry-run"]);
    let interface = match job.site.backend {
        Backend::Uml => "vec0:transport=fd",
        Backend::Qemu => "virtio-net-pci",
        _ => "<interface type=\"client\">",
    };
    run.go().exits(0).shows(&[
        "helper: ",
        "/passt ",
        "--tcp-ports none",
        "--no-map-gw",
        interface,
    ]);
}
