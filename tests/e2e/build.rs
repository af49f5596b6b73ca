//! `apppot image build`: recipes, and images that they have made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use apppot_snapshot::rules::Rules;
use apppot_snapshot::tree::{record, Ext4};
use apppot_snapshot::Entry;

use crate::import::text;
use crate::support::site::built;
use crate::support::tools::{copy_sparse, tool};
use crate::support::{debian_image, eventually, processes, Job, Run};

fn build<'a>(job: &'a Job, args: &[&str]) -> Run<'a> {
    job.apppot(&[&["image", "build"], args].concat())
}

/// A plot: 640 by 480 points, and something drawn on them.
const PLOT: &str = r#"
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as pyplot
pyplot.plot([x / 10 for x in range(100)], [(x / 10) ** 2 for x in range(100)])
pyplot.savefig("plot.png", dpi=100)
print("plotted")
"#;

#[test]
fn the_plot_of_a_python_program_is_a_picture() {
    let Some(job) = Job::new() else { return };
    let Some(image) = built("APPPOT_TEST_PYTHON") else {
        return;
    };
    job.put("plot.py", PLOT);
    job.apppot(&["run"])
        .image(&image)
        .limit(120)
        .go()
        .exits(0)
        .prints("plotted\n");
    let png = fs::read(job.path().join("plot.png")).unwrap();
    let sizes = picture(&png);
    assert_eq!(sizes, (640, 480));
}

/// The width and height of a PNG file, every part of which is whole (PNG specification, 5.3).
fn picture(bytes: &[u8]) -> (u32, u32) {
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut kinds) = (8, Vec::new());
    while at < bytes.len() {
        let len = number(at) as usize;
        let part = &bytes[at + 4..at + 8 + len];
        assert_eq!(number(at + 8 + len), crc(part), "part at {at}");
        kinds.push(part[..4].to_vec());
        at += 12 + len;
    }
    assert_eq!(kinds.first().unwrap(), b"IHDR");
    assert_eq!(kinds.last().unwrap(), b"IEND");
    assert!(kinds.iter().any(|kind| kind == b"IDAT"));
    (number(16), number(20))
}

fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Sums of the squares of the first numbers.
const SQUARES: &str = "\
program squares
  implicit none
  integer :: i, total = 0
  do i = 1, 5
    total = total + i**2
    print '(i0, 1x, i0)', i, total
  end do
end program
";

#[test]
fn a_fortran_program_is_compiled_and_prints_its_numbers() {
    let Some(job) = Job::new() else { return };
    let Some(image) = built("APPPOT_TEST_FORTRAN") else {
        return;
    };
    let run = || job.apppot(&["run"]).image(&image).limit(120).go();
    run().exits(1).says(&["there is no Fortran source"]);
    job.put("squares.f90", SQUARES);
    run().exits(0).prints("1 1\n2 5\n3 14\n4 30\n5 55\n");
    job.put("squares.f90", "program squares\n  nonsense\nend program\n");
    run().exits(1).says(&["squares.f90", "Error"]);
    assert_eq!(fs::read_dir(job.path()).unwrap().count(), 1);
}

/// A recipe with something of everything.
const RECIPE: &str = r#"
packages = ["passwd"]
commands = [
    "echo \"$(id -u) $PWD $(cat /srv/data/number)\" >/srv/said",
    "getent hosts any.name.test >/srv/network || echo none >/srv/network",
]
user = "worker"
size = "300M"
autorun = """
#!/bin/sh
echo "$(id -un) $(cat /srv/said)"
"""

[files]
"/srv/data" = "data"
"/usr/local/bin/tool" = "tool"

[labels]
purpose = "test"
"#;

#[test]
fn a_recipe_becomes_an_image() {
    let Some(job) = Job::on_uml(
        "a build is the same with every hypervisor, and takes minutes where code is translated",
    ) else {
        return;
    };
    if !job.site.has_own_kernel() {
        // Done once: what a build does besides running machines is the same with every kernel.
        return;
    }
    fs::create_dir(job.path().join("data")).unwrap();
    job.put("data/number", "7\n");
    job.script("tool", "#!/bin/sh\necho tool\n");
    job.put("own.toml", RECIPE);
    let data = job.directory_beside("store");
    let run = |args: &[&str]| build(&job, args).env("XDG_DATA_HOME", &data).limit(600);
    run(&["own.toml"]).go().exits(0).says(&[
        "fetching packages for 'own'",
        "installing them",
        "running getent",
        "own.img: ",
    ]);
    let image = data.join("apppot/images/own.img");
    job.apppot(&["image", "verify", text(&image)]).go().exits(0);
    let info = job.apppot(&["image", "info", text(&image)]).go().exits(0);
    info.shows(&[
        "purpose=test",
        "recipe own",
        "/etc/apppot/autorun",
        "300.0 MiB",
        "Debian",
    ]);
    let run_in = |run: Run| run.image(&image).go().exits(0).text();
    assert_eq!(run_in(job.apppot(&["run"])), "worker 0 / 7\n");
    // Owners and modes are those that packages have, not whoever built it; nothing of the build is left.
    let script = "tool; stat -c '%u:%g %a' /usr/bin/passwd /usr/bin/chage /etc/shadow /tmp /root /var/mail; \
        ls -A / | grep -c apppot; find / -xdev -uid +999 ! -uid 1000 ! -user worker; dpkg --audit; \
        ls /var/cache/apt/archives /tmp";
    let found = run_in(job.sh(script));
    assert!(
        found.starts_with("tool\n0:0 4755\n0:42 2755\n0:42 640\n0:0 1777\n0:0 700\n0:8 2775\n0\n"),
        "{found}"
    );
    // One that exists is not replaced, and is not touched by what cannot be built.
    run(&["own.toml"])
        .go()
        .exits(125)
        .says(&["exists", "--force"]);
    job.put(
        "own.toml",
        "commands = [\"echo going wrong >&2; exit 3\"]\n",
    );
    let before = fs::metadata(&image).unwrap().modified().unwrap();
    run(&["own.toml", "--force"]).go().exits(125).says(&[
        "going wrong",
        "cannot build 'own'",
        "ended with status 3",
    ]);
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_dir(image.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn what_is_wrong_with_a_recipe_is_said_before_anything_is_done() {
    let Some(job) = Job::new() else { return };
    for (recipe, expected) in [
        ("\n\npackage = []\n", "own.toml:3: unknown field `package`"),
        ("size = \"big\"\n", "own.toml:1: 'big' is no size"),
        (
            "packages = [\"-x\"]\n",
            "own.toml: '-x' cannot be a package's name",
        ),
        (
            "[files]\n\"/srv/x\" = \"missing\"\n",
            "cannot read 'missing' of the recipe",
        ),
        ("user = \"root\"\n", "every Debian has an account 'root'"),
        ("user = \"A.b\"\n", "'A.b' cannot be a user's name"),
        ("size = \"1K\"\n", "1K is too small"),
        (
            "[files]\n\"/tmp/x\" = \"own.toml\"\n",
            "'/tmp/x' does not stay",
        ),
    ] {
        job.put("own.toml", recipe);
        let path = job.beside("own.img");
        build(&job, &["own.toml", "-o", text(&path)])
            .go()
            .exits(125)
            .says(&[expected]);
        assert!(!path.exists());
    }
    build(&job, &["nonesuch"]).go().exits(125).says(&[
        "there is no recipe 'nonesuch'",
        "debian, fortran, python-plot",
    ]);
    // What would be missed only when packages have been fetched.
    job.put("own.toml", "commands = [\"true\"]\n");
    let words = ["own.toml", "-o", text(&job.beside("own.img"))].map(String::from);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let hide = "for p in /usr/bin/passt /usr/local/bin/passt; do [ ! -e $p ] || mount --bind /dev/null $p; done";
    let refused = |run: Run, what: &str| {
        let done = run.go().exits(125).says(&[what]);
        assert!(!done.stderr.contains("fetching"), "{}", done.stderr);
    };
    refused(build(&job, &words).mounts(hide), "passt is not installed");
    let run = build(&job, &words).env("APPPOT_KERNEL", "/does/not/exist");
    refused(run, "/does/not/exist");
    let run = build(&job, &words).with(&["--size", "1K"]);
    refused(run, "1K is too small");
    job.put("own.toml", "");
    let run = build(&job, &words).with(&["--layout", "disk"]);
    refused(run, "linux-image-amd64");
    job.put("own.toml", "mirror = \"http://127.0.0.1:9/debian\"\n");
    let path = job.beside("own.img");
    build(&job, &["own.toml", "-o", text(&path)])
        .limit(120)
        .go()
        .exits(125)
        .says(&["127.0.0.1:9", "cannot fetch the packages"]);
    assert!(!path.exists());
}

#[test]
fn a_build_that_is_killed_leaves_nothing() {
    let Some(job) = Job::new() else { return };
    let (images, temporary) = (job.directory_beside("images"), job.directory_beside("tmp"));
    // A mirror that takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    job.put(
        "own.toml",
        format!("mirror = \"http://127.0.0.1:{port}/debian\"\n"),
    );
    let path = images.join("own.img");
    let running = build(&job, &["own.toml", "-o", text(&path)])
        .env("TMPDIR", &temporary)
        .start();
    let _connection = silent.accept().unwrap();
    let children = processes::descendants(running.pid());
    assert!(children.len() > 2, "{children:?}");
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().signal(), Some(libc::SIGKILL));
    eventually("nothing is left", || {
        let empty = |directory: &Path| fs::read_dir(directory).unwrap().count() == 0;
        empty(&images) && empty(&temporary)
    });
    eventually("no process is left", || {
        let gone = |pid: &u32| processes::executable(*pid).is_none();
        children.iter().all(gone)
    });
}

#[test]
fn a_full_disk_is_named() {
    let Some(job) = Job::on_uml(
        "a build is the same with every hypervisor, and takes minutes where code is translated",
    ) else {
        return;
    };
    job.put("own.toml", "packages = []\n");
    let small = job.directory_beside("small");
    let mount = "mount -t tmpfs -o size=64m,mode=1777 none";
    let path = small.join("own.img");
    let run = build(&job, &["own.toml", "-o", text(&path)]).limit(300);
    run.mounts(&format!("{mount} '{}'", small.display()))
        .go()
        .exits(125)
        .says(&["no space is left in", "hint: free some space"]);
}

/// Everything in an image, with the hashes of its files.
fn entries(image: &Path) -> BTreeMap<PathBuf, Entry> {
    let tree = Ext4::open(Box::new(fs::File::open(image).unwrap()), 0).unwrap();
    let listing = record(&tree, &Rules::everything(), &|_, _| {}).unwrap();
    let entries = listing.found.into_iter().map(|found| found.entry);
    entries.map(|entry| (entry.shown(), entry)).collect()
}

/// Where useradd(8) writes the day: the day may change between two builds.
const DIFFER: [&str; 1] = ["/etc/shadow"];

#[test]
fn two_builds_are_alike_and_one_that_is_interrupted_leaves_nothing() {
    let Some(job) = Job::on_uml(
        "a build is the same with every hypervisor, and takes minutes where code is translated",
    ) else {
        return;
    };
    if !job.site.has_own_kernel() {
        return;
    }
    // A file whose first name does not stay.
    let recipe = "commands = [\"echo one >/tmp/x; ln /tmp/x /usr/local/bin/x\"]\nuser = \"user\"\n";
    job.put("own.toml", recipe);
    let images = job.directory_beside("images");
    let temporary = job.directory_beside("tmp");
    let start = |name: &str| {
        let path = images.join(name);
        let run = build(&job, &["own.toml", "-o", text(&path)]).limit(600);
        run.env("TMPDIR", &temporary).start()
    };
    let (one, two) = (start("one.img"), start("two.img"));
    one.finish().exits(0);
    two.finish().exits(0);
    let (one, two) = (
        entries(&images.join("one.img")),
        entries(&images.join("two.img")),
    );
    assert!(one.keys().eq(two.keys()), "the same names");
    let differ = |path: &&PathBuf| one[*path] != two[*path];
    let differ: Vec<&PathBuf> = one.keys().filter(differ).collect();
    let known = |path: &&&PathBuf| !DIFFER.iter().any(|known| path == &&Path::new(known));
    let unknown: Vec<&&PathBuf> = differ.iter().filter(known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(one.contains_key(Path::new("/usr/local/bin/x")));

    let three = start("three.img");
    three.until_it_says("installing them");
    let machine = || {
        let below = processes::descendants(three.pid());
        let runs = |pid: &u32| processes::executable(*pid).as_deref() == Some(&job.site.kernel);
        below.iter().any(runs)
    };
    eventually("a machine runs", machine);
    three.signal(libc::SIGINT);
    three.finish().exits(125).says(&["cannot build 'own'"]);
    assert_eq!(fs::read_dir(&images).unwrap().count(), 2);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

/// A package that says hello, and a source of packages that is the directory `/repository` of an image.
const REPOSITORY: &str = r#"
    cd "$1"
    mkdir -p hello/DEBIAN hello/usr/bin repository
    printf '#!/bin/sh\necho hello from a package\n' >hello/usr/bin/apppot-hello
    chmod 755 hello/usr/bin/apppot-hello
    printf 'Package: apppot-hello\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: says hello\n' \
        >hello/DEBIAN/control
    printf '#!/bin/sh\nset -e\nif [ "$1" = configure ]; then invoke-rc.d --disclose-deny --quiet cron start || echo denied: $?; fi\n' \
        >hello/DEBIAN/postinst
    chmod 755 hello/DEBIAN/postinst
    dpkg-deb --root-owner-group --build hello repository/apppot-hello_1_all.deb >/dev/null
    cd repository
    {
        dpkg-deb --field apppot-hello_1_all.deb
        echo "Filename: ./apppot-hello_1_all.deb"
        echo "Size: $(stat -c %s apppot-hello_1_all.deb)"
        echo "SHA256: $(sha256sum <apppot-hello_1_all.deb | cut -d' ' -f1)"
    } >Packages
"#;

/// A web server for the directory of its own, on 192.0.2.1, which has every name.
const SERVER: &str = r#"
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
my $web = IO::Socket::INET->new(LocalAddr => "192.0.2.1", LocalPort => 80, Listen => 9) or die $!;
my $all = IO::Select->new($names, $web);
while (getppid() == $launcher) {
    for my $ready ($all->can_read(0.1)) {
        if ($ready == $names) {
            my $from = $names->recv(my $query, 512);
            my $question = index($query, "\0", 12) + 5;
            my $is_v4 = unpack("n", substr($query, $question - 4, 2)) == 1;
            substr($query, 2, 10) = pack("n5", 0x8180, 1, $is_v4, 0, 0);
            my $answer = pack("nnnNnC4", 0xc00c, 1, 1, 60, 4, 192, 0, 2, 1);
            $names->send(substr($query, 0, $question) . ($is_v4 ? $answer : ""), 0, $from);
            next;
        }
        my $client = $ready->accept;
        while (my $line = <$client>) {
            my ($path) = $line =~ m,^GET \S*?/([\w./-]+) HTTP,;
            while (defined($line) and $line !~ /^\r?$/) { $line = <$client> }
            last unless defined $line;
            my ($content, $status) = ("", "404 Not Found");
            if (defined $path and open(my $file, "<", "REPOSITORY/$path")) { local $/; $content = <$file>; $status = "200 OK" }
            print $client "HTTP/1.1 $status\r\nContent-Length: " . length($content) . "\r\n\r\n$content";
            $client->flush;
        }
        close $client;
    }
}' >/dev/null 2>&1 &
until grep -q ':0050 ' /proc/net/tcp; do sleep 0.02; done
"#;

#[test]
fn packages_can_be_installed_into_an_image() {
    let Some(job) = Job::on_uml(
        "a build is the same with every hypervisor, and takes minutes where code is translated",
    ) else {
        return;
    };
    let Some(debian) = debian_image() else { return };
    let image = job.beside("mine.img");
    copy_sparse(debian, &image);
    job.give(&image);
    let base = job.directory_beside("packages");
    tool("sh", &["-euc", REPOSITORY, "sh", text(&base)]);
    let server = SERVER.replace("REPOSITORY", &format!("{}/repository", base.display()));
    let script = "set -e; export DEBIAN_FRONTEND=noninteractive; \
        echo 'deb [trusted=yes] http://packages.test/ ./' >/etc/apt/sources.list; \
        apt-get -q update; apt-get -q -y install apppot-hello; apppot-hello; cat /etc/resolv.conf";
    let run = job.sh(script).image(&image).with(&["--write", "--root"]);
    let run = run.with(&["--network", "user"]).network(&server).limit(180);
    // apt fetches as a user of its own, by name, and nothing is started in a machine without an init.
    run.go().exits(0).shows(&[
        "Setting up apppot-hello (1)",
        "denied: 101",
        "hello from a package",
        "nameserver 10.0.2.3",
    ]);
    // The image itself has it now, and nothing of this machine's network.
    let script = "apppot-hello; cat /etc/resolv.conf; dpkg --audit";
    job.sh(script)
        .image(&image)
        .go()
        .exits(0)
        .prints("hello from a package\n");
    // A shell changes it as well.
    let shell = job.apppot(&["shell", "--write", "--root", "--image", text(&image)]);
    let shell = shell.bytes("set -e\napt-get -q -y remove apppot-hello\nexit 7\n");
    shell.limit(180).go().exits(7);
    job.run(&["apppot-hello"]).image(&image).go().exits(127);
    job.apppot(&["image", "verify", text(&image)]).go().exits(0);
}
