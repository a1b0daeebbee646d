"""What fails says its name, the kernel's answer and the arguments that matter."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from machine import LOW, Machine

from hostd.kvm import KvmError, NoKvmError, System


def test_a_failing_ioctl_names_itself(machine: Machine) -> None:
    row = next(iter(machine.table))
    with pytest.raises(KvmError) as caught:
        machine.vm.set_slot(7, 0x1000, 0x1000, row.hva)
    error = caught.value
    assert error.ioctl == "KVM_SET_USER_MEMORY_REGION"
    assert error.errno == errno.EEXIST
    assert error.arguments == {"slot": 7, "gpa": 0x1000, "size": 0x1000, "hva": row.hva, "flags": 0}
    assert f"slot=7, gpa=0x1000, size=0x1000, hva={row.hva:#x}, flags=0x0" in str(error)
    assert "(EEXIST)" in str(error)


def test_bad_arguments_of_every_kind(machine: Machine, system: System) -> None:
    with pytest.raises(KvmError, match=r"KVM_SET_USER_MEMORY_REGION\(.*gpa=0x40001"):
        machine.vm.set_slot(1, LOW * 2 + 1, 0x1000, 0)
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU\(index=0\).*EEXIST"):
        machine.vm.create_vcpu(0)
    with pytest.raises(KvmError, match=r"KVM_IOEVENTFD\(address=0x10, length=4, fd=99999"):
        machine.vm.ioeventfd(0x10, 99999, 4, pio=True)
    with pytest.raises(KvmError, match=r"KVM_IRQ_LINE\(gsi=3"):
        machine.vm.irq_line(3, True)
    with pytest.raises(KvmError, match=r"KVM_GET_MSRS\(msr=0x12345\)"):
        machine.vcpu.get_msrs(0x12345)
    with pytest.raises(KvmError, match="KVM_SET_XCRS"):
        machine.vcpu.xcrs = {0: 0xFFFF_FFFF}
    with pytest.raises(KvmError, match=r"KVM_CREATE_VM\(type=99\)"):
        system.create_vm(99)
    with pytest.raises(KvmError, match="KVM_ENABLE_CAP"):
        machine.vm.enable("NR_VCPUS", 5)
    with pytest.raises(ValueError, match="'NO_SUCH_THING' is unknown"):
        machine.vm.capability("NO_SUCH_THING")


def test_bad_registers_are_refused(machine: Machine) -> None:
    sregs = machine.vcpu.sregs
    sregs.efer, sregs.cr0, sregs.cr4 = 0x500, 0x80000001, 0  # long mode without PAE
    with pytest.raises(KvmError, match=r"KVM_SET_SREGS\(cr0=0x80000001, .*EINVAL"):
        machine.vcpu.sregs = sregs


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(NoKvmError, match="does not exist: load kvm_intel or kvm_amd"):
        System.open(str(tmp_path / "kvm"))


def test_a_device_that_is_not_kvm() -> None:
    with pytest.raises(NoKvmError, match="/dev/null is no KVM device"):
        System.open("/dev/null")


def test_no_permission(tmp_path: Path) -> None:
    """Tried in a child that has given up root's rights, where the test runs as root."""
    device = tmp_path / "kvm"
    device.touch(mode=0o000)
    tmp_path.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = b"opened"
        try:
            if os.getuid() == 0:
                os.chdir(tmp_path)
                os.setresuid(65534, 65534, 65534)
            System.open("kvm" if os.getcwd() == str(tmp_path) else str(device))
        except NoKvmError as error:
            text = str(error).encode()
        finally:
            os.write(writer, text)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert "is not this user's to open: join its group" in said


def test_closing_twice_is_harmless(system: System) -> None:
    with system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vcpu.close()
        vm.close()


def test_a_closed_vcpu_says_so(system: System) -> None:
    with system.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
        vcpu.close()
        vcpu.stop()
        with pytest.raises(KvmError, match=r"KVM_RUN\(vcpu=-1\).*the vCPU is closed"):
            vcpu.run()
