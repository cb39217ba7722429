"""The vocabulary of operators: what kind of layer each is. An op that is not here has kind "other", cost unknown."""

from __future__ import annotations

ALIASING = frozenset(
    "flatten unflatten view reshape permute transpose squeeze unsqueeze getitem expand expand_as chunk split unbind "
    "narrow select swapaxes swapdims movedim moveaxis t T mT H mH detach contiguous identity view_as reshape_as unfold "
    "tensor_split split_with_sizes data real imag to float type type_as ravel diagonal as_strided broadcast_to "
    "broadcast_tensors view_as_complex view_as_real conj resolve_conj resolve_neg hsplit vsplit requires_grad "
    "requires_grad_ atleast_1d atleast_2d atleast_3d alias positive cpu cuda".split()
)
"""Results that share the storage of their first input (``contiguous``, ``reshape`` and ``to``: as a rule)."""

KIND: dict[str, str] = {
    op: kind
    for kind, ops in {
        "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        "linear": "linear bilinear",
        "norm": "batch_norm layer_norm group_norm instance_norm local_response_norm rms_norm",
        "attention": "scaled_dot_product_attention multi_head_attention_forward",
        "recurrent": "lstm gru rnn rnn_tanh rnn_relu lstmcell grucell rnncell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        "matmul": "matmul bmm mm mv dot vdot inner addmm addmv baddbmm addbmm einsum outer addr chain_matmul multi_dot",
        "embedding": "embedding embedding_bag one_hot",
        "activation": "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh "
        "sigmoid tanh softmax log_softmax softmin softplus softsign tanhshrink logsigmoid threshold glu softmax2d "
        "hardshrink softshrink clamp clamp_min clamp_max clip erf exp sin cos normalize",
        "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d "
        "lp_pool2d fractional_max_pool2d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
        "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices",
        "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout native_dropout",
        "upsample": "interpolate upsample grid_sample max_unpool1d max_unpool2d max_unpool3d",
        "reduce": "mean sum prod amax amin max min aminmax std var std_mean var_mean norm vector_norm linalg_vector_norm "
        "linalg_norm matrix_norm logsumexp all any argmax argmin median mode quantile count_nonzero nanmean nansum kthvalue",
        "merge": "add mul sub div cat stack maximum minimum hstack vstack dstack column_stack addcmul addcdiv lerp where",
        "elementwise": "identity rsub pow sqrt rsqrt square expm1 exp2 log log2 log10 log1p tan asin acos atan atan2 sinh cosh "
        "asinh acosh atanh abs neg sign sgn floor ceil round trunc frac fix fmod remainder mod floordiv floor_divide "
        "reciprocal erfinv erfc cumsum cumprod cummax cummin masked_fill masked_scatter logical_and logical_or "
        "logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor and or xor invert eq ne lt le gt ge "
        "isnan isinf isfinite isclose sort argsort topk cosine_similarity pairwise_distance cdist cross heaviside signbit "
        "sinc nan_to_num diff half double bfloat16 long int bool short char byte copy fill zero setitem hypot logit xlogy "
        "deg2rad rad2deg bucketize searchsorted affine_grid complex polar angle float_power i0 lgamma digamma true_divide "
        "weight_norm weight_norm_interface",
        "reshape": " ".join(sorted(ALIASING - {"identity"}))
        + " pad roll repeat tile clone gather scatter scatter_add scatter_reduce "
        "index_select index_add index_copy index_put index_fill take take_along_dim flip fliplr flipud rot90 "
        "repeat_interleave channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle fold im2col col2im masked_select "
        "tril triu diag diag_embed block_diag meshgrid cartesian_prod combinations nonzero unique unique_consecutive",
        "constant": "zeros ones empty full rand randn randint randperm arange linspace logspace eye tensor as_tensor "
        "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty "
        "new_full new_tensor scalar_tensor tril_indices triu_indices hann_window hamming_window kaiser_window "
        "blackman_window from_numpy normal uniform bernoulli multinomial exponential log_normal geometric cauchy random "
        "kaiming_uniform kaiming_normal xavier_uniform xavier_normal trunc_normal orthogonal constant dirac sparse",
    }.items()
    for op in ops.split()
}
"""``merge`` joins two or more tensors, ``reshape`` moves values, ``reduce`` folds axes, ``constant`` makes tensors."""
