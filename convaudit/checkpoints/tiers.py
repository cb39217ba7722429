"""The four tiers of what a pickle names, as data (RULES.md, CNV6xx).

``tensors`` is what torch 2.13's weights_only loader allows by default (``torch/_weights_only_unpickler.py``,
``_get_allowed_globals``). Everything else of the standard library, torch and numpy is ``code`` unless it is named here.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Literal

Tier = Literal["tensors", "plain data", "classes", "code"]
TIERS: tuple[Tier, ...] = ("tensors", "plain data", "classes", "code")

_KINDS = "BFloat16 Bool Byte Char Double Float Half Int Long Short"
_STORAGES = f"{_KINDS} ComplexDouble ComplexFloat QInt32 QInt8 QUInt2x4 QUInt4x2 QUInt8".split()
_SPARSE = "BFloat16 Byte Char Double Float Half Int Long Short".split()
_DTYPES = (
    "bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 float4_e2m1fn_x2 "
    "float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int16 int2 int3 int32 int4 "
    "int5 int6 int64 int7 int8 qint32 qint8 quint2x4 quint4x2 quint8 uint1 uint16 uint2 uint3 uint32 uint4 uint5 uint6 "
    "uint64 uint7 uint8"
).split()
_REBUILDERS = (
    "_rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy _rebuild_meta_tensor_no_storage "
    "_rebuild_nested_tensor _rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor "
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_wrapper_subclass"
).split()
_QSCHEMES = (
    "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine per_tensor_symmetric"
).split()

TENSORS: frozenset[tuple[str, str]] = frozenset(
    [
        ("_codecs", "encode"), ("builtins", "bytearray"), ("builtins", "complex"), ("builtins", "set"),
        ("collections", "Counter"), ("collections", "OrderedDict"), ("torch", "Size"), ("torch", "Tensor"),
        ("torch", "device"), ("torch._tensor", "_rebuild_from_type_v2"), ("torch.nn.parameter", "Parameter"),
        ("torch.serialization", "_get_layout"), ("torch.storage", "TypedStorage"), ("torch.storage", "UntypedStorage"),
        *(("torch", f"{kind}Storage") for kind in _STORAGES),
        *(("torch.cuda", f"{kind}Storage") for kind in _STORAGES if not kind.startswith("Q")),
        *((module, f"{kind}Tensor") for kind in _KINDS.split() for module in ("torch", "torch.cuda")),
        *((module, f"{kind}Tensor") for kind in _SPARSE for module in ("torch.sparse", "torch.cuda.sparse")),
        *(("torch", name) for name in [*_DTYPES, *_QSCHEMES]),
        *(("torch._utils", name) for name in _REBUILDERS),
    ]
)  # fmt: skip

_PLAIN_BY_MODULE = {
    "numpy": "ndarray dtype bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
    "longdouble complex64 complex128 str_ bytes_ void datetime64 timedelta64 intc uintc longlong ulonglong recarray record matrix",
    "numpy.rec": "recarray record",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core._internal": "_convert_to_stringdtype_kwargs",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random._pickle": "__randomstate_ctor __bit_generator_ctor __generator_ctor",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "argparse": "Namespace",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "collections": "defaultdict deque ChainMap UserDict UserList",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID SafeUUID",
    "numpy.ma": "MaskedArray",
    "numpy.ma.core": "MaskedArray _mareconstruct",
    "builtins": "Ellipsis NotImplemented slice range frozenset list dict tuple int float str bytes bool object",
    "copyreg": "_reconstructor",
    "re": "_compile Pattern RegexFlag",
    "http": "HTTPStatus",
    "signal": "Signals",
    "ipaddress": "IPv4Address IPv4Network IPv4Interface IPv6Address IPv6Network IPv6Interface",
    "array": "array _array_reconstructor",
    "time": "struct_time",
    "typing": "Any Callable Dict FrozenSet Iterable Iterator List Literal Mapping Optional Sequence Set Tuple Type Union",
    "types": "GenericAlias SimpleNamespace",
    "collections.abc": "Callable Collection Container Generator Hashable ItemsView Iterable Iterator KeysView Mapping MutableMapping "
    "MutableSequence MutableSet Reversible Sequence Set Sized ValuesView",
    "zoneinfo": "ZoneInfo",
    "torch.torch_version": "TorchVersion",
    "torch._C": "Generator",
    "torch.distributed.tensor": "DTensor",
    "torch.distributed.tensor._dtensor_spec": "DTensorSpec TensorMeta ShardOrderEntry",
    "torch.distributed.tensor.placement_types": "Shard Replicate Partial _StridedShard",
    "torch.distributed._tensor.api": "DTensor",
    "torch.distributed._tensor.placement_types": "DTensorSpec TensorMeta Shard Replicate Partial _Partial",
    "torch.distributed.device_mesh": "DeviceMesh",
    "torch.distributed._mesh_layout": "_MeshLayout _FlatLayout",
    "torch.distributed.checkpoint.metadata": "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata "
    "TensorProperties MetadataIndex StorageMeta _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.remote_device": "_remote_device",
    "torch.nested._internal.nested_tensor": "NestedTensor _rebuild_njt",
    "torch._dynamo.decorators": "_DimRange",
    "torch.jit._pickle": "build_tensor_from_id",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode ValueNode",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "lightning.fabric.utilities.data": "AttributeDict",
    "yacs.config": "CfgNode",
    "fvcore.common.config": "CfgNode",
}
PLAIN: frozenset[tuple[str, str]] = frozenset(
    (module, name) for module, names in _PLAIN_BY_MODULE.items() for name in names.split()
)
"""Data that weights_only refuses by default. ``copyreg._reconstructor`` calls only what is listed beside it."""

_CLASS_MODULES = (
    "torch.nn.modules.", "torch.nn.parallel.", "torch.nn.utils.", "torch.nn.quantized.", "torch.nn.intrinsic.", "torch.optim.",
    "torch.distributed._shard.", "torch.ao.nn.", *(f"torch.{where}quantization.{part}" for where in ("", "ao.") for part in ("stubs", "observer", "fake_quantize")),
)  # fmt: skip
"""Modules of torch whose classes whole networks are made of; torch.fx's, whose source code is in the pickle, are not."""
_FUNCTIONS = {
    "torch.nn.functional": "relu relu6 gelu silu mish elu selu celu leaky_relu softplus hardswish hardtanh tanh sigmoid hardsigmoid softsign softmax "
    "log_softmax softmin tanhshrink hardshrink threshold rrelu glu normalize layer_norm group_norm dropout interpolate adaptive_avg_pool2d "
    "cross_entropy mse_loss l1_loss smooth_l1_loss huber_loss nll_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits",
    "torch._C._nn": "gelu log_sigmoid softplus softshrink avg_pool2d avg_pool3d elu_ linear scaled_dot_product_attention",
    "torch.nn.init": "uniform_ normal_ trunc_normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_ xavier_normal_ kaiming_uniform_ "
    "kaiming_normal_ orthogonal_ sparse_",
}
_VARIABLE_FUNCTIONS = (
    "relu relu_ tanh sigmoid softmax log_softmax selu selu_ celu celu_ rrelu prelu exp log sqrt rsqrt square abs sin cos erf sign clamp "
    "add sub mul div matmul sum mean max min cat stack"
)
"""Functions of torch that only compute, which whole modules keep as attributes; what torch gives away itself is pickled by getattr."""
_KEPT = frozenset((module, name) for module, names in _FUNCTIONS.items() for name in names.split())
_CLASSES = {
    ("torch", "ScriptObject"),  # a quantized LSTM's weights
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),  # before each array of joblib's
    *(("torch.nn.parameter", name) for name in ("UninitializedParameter", "UninitializedBuffer", "Buffer")),  # of lazy modules
    ("torch._C", "_VariableFunctionsClass"),
    *(("torch.distributed.fsdp.api", name) for name in
      "BackwardPrefetch CPUOffload MixedPrecision ShardingStrategy StateDictType FullStateDictConfig LocalStateDictConfig ShardedStateDictConfig".split()),
}  # fmt: skip

CONFIGS: frozenset[str] = frozenset(f"{module}.{name}" for module, name in PLAIN if module.startswith("omegaconf."))
"""Classes of omegaconf, which evaluates the annotations of the classes that it is called with; pickles call it with nothing."""
GUARDED: frozenset[str] = frozenset([
    "builtins.getattr", "builtins.type", "functools.partial", "functools.reduce", "_operator.getitem", "_operator.or_",
    *(f"torch.jit._pickle.{name}" for name in "build_intlist build_tensorlist build_doublelist build_boollist restore_type_tag".split()),
])  # fmt: skip
"""Code, unless all that a pickle does with it is to call it for what honest pickles call it for."""
SHARDED = "torch.distributed._shard.sharded_tensor.api.ShardedTensor"
ATTRIBUTES = {
    "torch._C._VariableFunctionsClass": frozenset(_VARIABLE_FUNCTIONS.split()), "zoneinfo.ZoneInfo": frozenset(["_unpickle"]),
    SHARDED: frozenset(["ProcessGroupState"]),
}  # fmt: skip
"""What getattr may fetch, by its owner."""

GADGETS: frozenset[str] = frozenset(
    "pip setuptools pkg_resources joblib cloudpickle dill _pytest pytest py nose IPython ipykernel jsonpickle fickling numba "
    "cffi pexpect ptyprocess plumbum sh invoke fabric paramiko asyncssh psutil sympy mpmath numexpr pydoc2 ansible _distutils_hack "
    "distutils wheel ray dask fsspec requests aiohttp httpx urllib3 typing_extensions six yaml ruamel pygments click rich jinja2 mako".split()
)
"""Top-level third-party packages that run what they are given."""
_GADGET_NAMES = frozenset(
    [
        ("pandas", "read_pickle"), ("pandas.io.pickle", "read_pickle"), ("hydra.utils", "instantiate"),
        ("hydra._internal.instantiate._instantiate2", "instantiate"), ("transformers.dynamic_module_utils", "get_class_from_dynamic_module"),
        ("keras.models", "load_model"), ("tensorflow.python.keras.saving.save", "load_model"),
        ("omegaconf._utils", "_get_class"), ("lightning_utilities.core.imports", "module_available"),
    ]
)  # fmt: skip
_RUNNERS = frozenset(
    "system popen Popen eval exec exec_ execfile compile open getattr setattr delattr getattr_static check_output check_call call run getoutput "
    "getstatusoutput spawn spawnl spawnle spawnlp spawnv spawnve spawnvp posix_spawn execl execle execlp execv execve execvp execvpe fork_exec "
    "import_module import_string import_from_string import_object import_by_path locate reload run_path run_module runcode runsource "
    "runctx load loads load_module exec_module module_from_spec spec_from_file_location SourceFileLoader zipimporter find_spec Unpickler "
    "partial partialmethod reduce attrgetter itemgetter methodcaller CodeType FunctionType get_type_hints make_dataclass literal_eval timeit "
    "rmtree copyfile copytree unlink urlopen urlretrieve CDLL unsafe_load unsafe_load_all full_load full_load_all load_all".split()
)
"""Names under which third-party packages give away functions of the standard library that run what they are given, or their own."""
_STANDARD: frozenset[str] = frozenset(sys.stdlib_module_names) | frozenset(
    "__builtin__ commands popen2 cPickle copy_reg urllib2 urlparse imp distutils asyncore asynchat smtpd cgi cgitb pipes "
    "crypt nis spwd telnetlib uu xdrlib aifc audioop chunk imghdr msilib nntplib ossaudiodev sndhdr sunau mailcap lib2to3 "
    "test nt posix os2 mac riscos _winapi execfile _testcapi _testinternalcapi __builtins__ _pyrepl _interpreters "
    "_interpchannels _interpqueues _remote_debugging annotationlib compression _android_support _apple_support "
    "_ios_support _sysconfig _opcode_metadata _colorize pathlib".split()
)


def tier_of(module: str, name: str) -> tuple[Tier, str, str]:
    """The tier of a global, and its module and name as Python 3 spells them (pickle's own mapping of Python 2 names)."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]
    return _tier(module, name), module, name


def is_begun(module: str, name: str) -> bool:
    """Whether ``name`` is the beginning of a name of data, as in a file that was cut."""
    return any(held == module and known.startswith(name) for held, known in TENSORS | PLAIN | _KEPT | _CLASSES)


def _tier(module: str, name: str) -> Tier:
    if (module, name) in TENSORS:
        return "tensors"
    if (module, name) in PLAIN:
        return "plain data"
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return "code"  # dotted names walk through attributes; the rest is no name at all
    top = module.partition(".")[0]
    if module == "numpy.dtypes" and name.endswith("DType"):
        return "plain data"
    if module.startswith(_CLASS_MODULES) and name[:1].isupper():
        return "classes"
    if (module, name) in _KEPT or (module, name) in _CLASSES:
        return "classes"
    if top == "__main__" or top == "__torch__":
        return "classes"
    if top in _STANDARD or top in ("torch", "numpy") or top in GADGETS or (module, name) in _GADGET_NAMES:
        return "code"
    if name.startswith("__") or name in _RUNNERS:
        return "code"  # __import__, Popen and the like, reached through a module of any name
    return "classes"
