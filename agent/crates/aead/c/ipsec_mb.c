/* ChaCha20-Poly1305 of ipsec-mb, behind two calls: its own interface is macros over a structure
 * whose layout differs between versions, so that only C with its header can use it. */
#include <intel-ipsec-mb.h>
#include <stddef.h>
#include <stdint.h>

/* A manager for one thread, to be freed with free_mb_mgr; NULL where it has no code that is
 * faster than others': that takes AVX-512 with IFMA. */
IMB_MGR *weft_ipsec_mb_new(void)
{
    IMB_MGR *manager = alloc_mb_mgr(0);
    IMB_ARCH architecture;

    if (manager == NULL)
        return NULL;
    init_mb_mgr_auto(manager, &architecture);
    if (architecture == IMB_ARCH_AVX512 && (manager->features & IMB_FEATURE_AVX512_IFMA))
        return manager;
    free_mb_mgr(manager);
    return NULL;
}

/* Encrypts or decrypts `len` bytes at `data` in place and writes the 16 bytes of the tag that
 * belongs to the ciphertext. Returns 0 if the library did not do it. */
int weft_ipsec_mb_crypt(IMB_MGR *manager, int encrypt, const uint8_t *key, const uint8_t *nonce,
                        uint8_t *data, size_t len, uint8_t *tag)
{
    IMB_JOB *job = IMB_GET_NEXT_JOB(manager);

    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = encrypt ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
    job->chain_order = encrypt ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
    job->enc_keys = key;
    job->dec_keys = key;
    job->key_len_in_bytes = 32;
    job->iv = nonce;
    job->iv_len_in_bytes = 12;
    job->src = data;
    job->dst = data;
    job->cipher_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = len;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_hash_in_bytes = len;
    job->u.CHACHA20_POLY1305.aad = nonce;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = 0;
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = 16;
    /* This cipher is done at once, never kept until more jobs come. */
    job = IMB_SUBMIT_JOB_NOCHECK(manager);
    return job != NULL && job->status == IMB_STATUS_COMPLETED;
}
