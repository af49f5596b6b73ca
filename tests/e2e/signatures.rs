//! Signatures: minisign and apppot understand each other, and what a site demands holds.

use std::path::{Path, PathBuf};

use crate::support::tools::{ext4, small_root, tool};
use crate::support::{Job, Run};

/// A pair of keys without a password, by minisign itself: NAME.key and NAME.pub. The public key.
fn keys(job: &Job, name: &str) -> String {
    let path = |end: &str| format!("{}.{end}", job.path().join(name).display());
    let (secret, public) = (path("key"), path("pub"));
    tool("minisign", &["-G", "-W", "-s", &secret, "-p", &public]);
    for file in [&secret, &public] {
        job.give(Path::new(file));
    }
    let text = std::fs::read_to_string(public).unwrap();
    text.lines().nth(1).unwrap().to_owned()
}

fn sign(job: &Job, name: &str, file: &Path) {
    let key = format!("{name}.key");
    let words = ["image", "sign", "--key", &key, file.to_str().unwrap()];
    job.apppot(&words).go().exits(0);
}

/// An image that the user can sign.
fn image(job: &Job) -> PathBuf {
    let image = ext4(job, "image");
    let own = job.path().join("own.img");
    std::fs::copy(&image, &own).unwrap();
    job.give(&own);
    own
}

/// Where the site's configuration is `text`.
fn at_a_site<'a>(job: &Job, run: Run<'a>, text: &str) -> Run<'a> {
    let file = job.put("site.toml", text);
    run.mounts(&format!(
        "mount -t tmpfs tmpfs /mnt
         cp -a /etc/. /mnt 2>/dev/null || true
         mkdir -p /mnt/apppot
         cp '{}' /mnt/apppot/config.toml
         mount --bind /mnt /etc",
        file.display()
    ))
}

fn demand(key: &str) -> String {
    format!("require-signature = true\ntrusted-keys = ['{key}']\n")
}

#[test]
fn minisign_verifies_what_apppot_signs_and_the_other_way_round() {
    let Some(job) = Job::new() else { return };
    let public = keys(&job, "a");
    let image = image(&job);
    sign(&job, "a", &image);
    let path = image.to_str().unwrap();
    let said = tool("minisign", &["-V", "-P", &public, "-m", path]);
    assert!(said.contains("file:own.img"), "{said}");

    let signature = format!("{path}.minisig");
    std::fs::remove_file(&signature).unwrap();
    let secret = job.path().join("a.key");
    let secret = secret.to_str().unwrap();
    tool(
        "minisign",
        &["-S", "-s", secret, "-m", path, "-t", "by hand"],
    );
    job.give(Path::new(&signature));
    let verify = |key: &str| {
        let words = ["image", "verify", "--signature", "--public-key", key, path];
        job.apppot(&words).go()
    };
    verify("a.pub").exits(0).shows(&[&public, "by hand"]);
    let other = keys(&job, "b");
    verify(&other).exits(125).says(&["by no trusted key"]);
    tool("minisign", &["-S", "-l", "-s", secret, "-m", path]);
    verify(&public).exits(125).says(&["is not prehashed"]);
}

#[test]
fn keys_with_a_password_sign_too() {
    let Some(job) = Job::new() else { return };
    let image = image(&job);
    let script = "printf 'secret\\nsecret\\n' | minisign -G -s \"$1\" -p \"$2\"";
    let paths = ["locked.key", "locked.pub"].map(|name| job.path().join(name));
    let [secret, public] = [&paths[0], &paths[1]].map(|path| path.to_str().unwrap());
    tool("sh", &["-c", script, "sh", secret, public]);
    job.give(&paths[0]);
    let path = image.to_str().unwrap();
    let words = ["image", "sign", "--key", "locked.key", path];
    job.apppot(&words).bytes("secret\n").go().exits(0);
    tool("minisign", &["-V", "-p", public, "-m", path]);
}

#[test]
fn only_what_can_be_used_is_signed() {
    let Some(job) = Job::new() else { return };
    keys(&job, "a");
    job.put("text", b"no image");
    job.put(
        "half",
        [&0xfd2f_b528u32.to_le_bytes()[..], &[0; 600]].concat(),
    );
    for (name, reason) in [
        ("text", "neither"),
        ("half", "truncated"),
        ("gone", "No such"),
    ] {
        let run = job.apppot(&["image", "sign", "--key", "a.key", name]).go();
        run.exits(125).says(&[name, reason]);
        assert!(!job.has(&format!("{name}.minisig")));
    }
    let run = job
        .apppot(&["image", "sign", "--key", "none.key", "text"])
        .go();
    run.exits(125).says(&["none.key", "minisign -G"]);
}

#[test]
fn a_site_s_demand_is_met_by_its_keys_alone() {
    let Some(job) = Job::new() else { return };
    let (sites, users) = (keys(&job, "site"), keys(&job, "user"));
    let image = image(&job);
    let run = |site: &str| {
        let run = job.sh(": >ran; cat /etc/name").image(&image);
        at_a_site(&job, run, site).go()
    };
    let refused = |reason: &str| {
        let run = run(&demand(&sites)).exits(125);
        run.says(&["/etc/apppot/config.toml", reason, "hint:"]);
        assert!(!job.has("ran"));
    };
    refused("is not signed");
    sign(&job, "user", &image);
    refused("by no trusted key");
    // What the user says himself takes nothing back and adds nothing.
    let weaker = format!("require-signature = false\ntrusted-keys = ['{users}']\n");
    job.put("apppot.toml", &weaker);
    refused("by no trusted key");
    sign(&job, "site", &image);
    run(&demand(&sites)).exits(0).prints("image");
    std::fs::remove_file(job.path().join("ran")).unwrap();
    // A change that keeps the size and the time.
    let mut file = std::fs::File::options().write(true).open(&image).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(700)).unwrap();
    std::io::Write::write_all(&mut file, b"x").unwrap();
    file.set_modified(time).unwrap();
    refused("is not what was signed");
    run("require-signature = true\n")
        .exits(125)
        .says(&["trusts no key"]);
    assert!(!job.has("ran"));
    // A user may demand more than the site.
    job.put("apppot.toml", demand(&sites));
    let run = job.sh(": >ran").image(&image).go();
    run.exits(125).says(&["apppot.toml", "not what was signed"]);
    assert!(!job.has("ran"));
}

#[test]
fn doctor_says_when_the_kernel_is_not_the_site_s() {
    let Some(job) = Job::new() else { return };
    let kernel = job.beside("kernel");
    std::fs::copy(&job.site.kernel, &kernel).unwrap();
    job.give(&kernel);
    let doctor = |kernel: &Path| job.apppot(&["doctor"]).env("APPPOT_KERNEL", kernel);
    doctor(&kernel).go().exits(0);
    job.put("apppot.toml", demand(&keys(&job, "site")));
    let done = doctor(&kernel).go().exits(1);
    done.shows(&["FAIL signatures", "apppot.toml", "it is not root's"]);
    job.run(&["true"])
        .env("APPPOT_KERNEL", &kernel)
        .go()
        .exits(125)
        .says(&["it is not root's"]);
}

#[test]
fn nothing_unsigned_gets_in_beside_a_signed_image() {
    let Some(job) = Job::new() else { return };
    let sites = keys(&job, "site");
    let image = image(&job);
    sign(&job, "site", &image);
    let path = image.to_str().unwrap();
    job.sh("echo more >/etc/more")
        .image(&image)
        .with(&["--root", "--overlay", "kept.cow"])
        .go()
        .exits(0);
    let words = [
        "snap",
        "changes",
        "--base",
        path,
        path,
        "--overlay",
        "kept.cow",
        "-o",
        "c",
    ];
    job.apppot(&words).go().exits(0);
    let kernel = job.path().join("kernel");
    std::fs::copy(
        std::env::var_os("APPPOT_TEST_KERNEL").unwrap_or("/usr/bin/linux.uml".into()),
        &kernel,
    )
    .unwrap();
    job.give(&kernel);
    let run_in = |image: &Path, options: &[&str]| {
        let run = job.sh(": >ran; cat /etc/name /etc/more").image(image);
        at_a_site(&job, run.with(options), &demand(&sites)).go()
    };
    let run = |options: &[&str]| run_in(&image, options);
    let refusals: [(&[&str], &str); 6] = [
        (&["--changes", "c"], "'c' is not signed"),
        (&["--overlay", "kept.cow"], "--overlay cannot be used"),
        (&["--overlay", "fresh.cow"], "--overlay cannot be used"),
        (&["--write"], "--write cannot be used"),
        (&["--extra", "ubd1=own.img"], "--extra cannot be used"),
        (&["--kernel", "kernel"], "is not root's"),
    ];
    for (options, reason) in refusals {
        let reason = reason.replace("'c'", &format!("'{}'", job.path().join("c").display()));
        run(options).exits(125).says(&[&reason]);
        assert!(!job.has("ran"), "{options:?}");
    }
    let run = run_in(&small_root(&job, "root"), &[]);
    run.exits(125).says(&["a directory cannot be signed"]);
    sign(&job, "site", &job.path().join("c"));
    run_in(&image, &["--changes", "c"])
        .exits(0)
        .prints("imagemore\n");
    // The host's own root is the site's.
    let host = at_a_site(&job, job.run(&["true"]), &demand(&sites));
    host.go().exits(0);
}
